package session

import (
	"context"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
)

// probe begins to try whether a service is reached. One probe runs at a time.
func (s *stream) probe(inner context.Context, order *dispatcherv1.ProbeOrder) {
	s.readers.Go(func() {
		result := &dispatcherv1.ProbeResult{ProbeId: order.GetProbeId()}
		select {
		case s.probing <- struct{}{}:
			response, err := s.c.cfg.Probe(inner, order.GetNetworkId(), order.GetServiceId())
			if err != nil {
				result.Error = err.Error()
			}
			result.Response = response
			<-s.probing
		default:
			result.Error = "the worker is testing a network at the moment; try again soon"
		}
		select {
		case s.probes <- result:
		case <-inner.Done():
		}
	})
}
