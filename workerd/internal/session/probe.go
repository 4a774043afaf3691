package session

import (
	"context"

	"google.golang.org/grpc/codes"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/workerd/executor"
)

// probe begins to try whether a service is reached, or to do what is asked of volumes. One
// test of a network runs at a time.
func (s *stream) probe(inner context.Context, order *dispatcherv1.ProbeOrder) {
	s.readers.Go(func() {
		result := &dispatcherv1.ProbeResult{ProbeId: order.GetProbeId()}
		if order.GetVolumes() != nil {
			result.Volumes = s.volumes(inner, order.GetVolumes())
		} else {
			s.tryNetwork(inner, order, result)
		}
		select {
		case s.probes <- result:
		case <-inner.Done():
		}
	})
}

func (s *stream) tryNetwork(inner context.Context, order *dispatcherv1.ProbeOrder, result *dispatcherv1.ProbeResult) {
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
}

// volumes lists the volumes of the node, or removes one.
func (s *stream) volumes(inner context.Context, order *dispatcherv1.VolumeOrder) *dispatcherv1.VolumeResult {
	result := &dispatcherv1.VolumeResult{}
	var err error
	switch name := order.GetRemove(); {
	case s.c.cfg.Volumes == nil:
		err = &executor.Error{Code: codes.Unimplemented}
	case name == "":
		result.Volumes, err = s.c.cfg.Volumes.List(inner)
	default:
		err = s.c.cfg.Volumes.Remove(inner, name)
	}
	if err != nil {
		result.Code, result.Error = uint32(executor.ErrorOf(err).Code), err.Error()
	}
	return result
}
