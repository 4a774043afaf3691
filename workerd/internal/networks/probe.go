package networks

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// probeTimeout bounds one attempt to reach something, and probesTimeout all of them.
	probeTimeout  = 3 * time.Second
	probesTimeout = 20 * time.Second
	// mostChecks bounds what is reported.
	mostChecks = 2_000
)

// Probe has the network's plugin try whether a service is reached.
func (n *Networks) Probe(ctx context.Context, id, service string) (*networkv1.ProbeResponse, error) {
	n.mu.Lock()
	e := n.networks[id]
	name := nameOf(e, id)
	var plugin string
	var known bool
	if e != nil && e.object != nil {
		plugin = n.serving(e.object.GetDriver())
		known = e.services[service] != nil && e.services[service].object != nil
	}
	a := n.appliers[plugin]
	able := a != nil && a.current != nil && a.current.Can("probe")
	n.mu.Unlock()
	switch {
	case e == nil || e.object == nil:
		return nil, fmt.Errorf("it has no addresses of network %s: choose a node that runs tasks on it", name)
	case !known:
		return nil, fmt.Errorf("it was not told of the service on network %s yet", name)
	case a == nil:
		return nil, fmt.Errorf("it has no network plugin for network %s", name)
	case !able:
		return nil, fmt.Errorf("network plugin %s cannot test connections", plugin)
	}
	p, err := n.ready(ctx, &task{plugin: plugin, attachments: []network.Attachment{{NetworkID: id}}})
	if err != nil {
		return nil, err
	}
	response, err := within(ctx, plugin, probesTimeout, func(ctx context.Context) (*networkv1.ProbeResponse, error) {
		return p.Probe(ctx, &networkv1.ProbeRequest{NetworkId: id, ServiceId: service, Timeout: durationpb.New(probeTimeout)})
	})
	if checks := response.GetChecks(); len(checks) > mostChecks {
		response.Checks = checks[:mostChecks]
	}
	return response, err
}
