package pluginhost

import (
	"context"
	"fmt"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
	"github.com/musterhq/muster/workerd/network"
)

// Networks returns the network plugins.
func (h *Host) Networks() network.Set { return &networkSet{h} }

// networkSet is the network plugins of a host.
type networkSet struct{ host *Host }

// Describe asks all network plugins what they are, and starts those that do not run.
func (s *networkSet) Describe(ctx context.Context) []*network.Described {
	return describe(ctx, s.host, networkKind, (*plugin).describedNetwork)
}

// Changes receives when a network plugin was found, has come up, or has ended.
func (s *networkSet) Changes() <-chan struct{} { return s.host.changes[networkKind] }

// describedNetwork returns the network plugin as it last described itself.
func (p *plugin) describedNetwork() *network.Described {
	p.mu.Lock()
	defer p.mu.Unlock()
	var process network.Plugin
	if p.running != nil {
		process = p.running.calls
	}
	d := network.NewDescribed(process, p.said.network)
	// The file's name is what pins, logs and settings call it.
	d.Name, d.Description.Name = p.file.name, p.file.name
	d.Description.Checksum = p.checksum
	if sick, message := p.trouble(); message != "" {
		if sick {
			d.Description.Health = musterv1.ExecutorDescription_UNHEALTHY
		}
		d.Description.Message = bounds.Text(message, nodereport.MaxExecutorMessage)
	}
	return d
}

// trouble returns what is wrong with the plugin beyond what it says itself, and whether it
// cannot work therefore. p.mu is held.
func (p *plugin) trouble() (sick bool, message string) {
	switch {
	case p.failure != nil && p.running == nil:
		return true, p.failure.Error()
	case !p.said.known():
		return true, "it is being started"
	case p.silences > 0:
		return true, fmt.Sprintf("it does not answer within %s", describeTimeout)
	case p.refusal != nil:
		return false, p.refusal.Error()
	}
	return false, ""
}

// networkCalls is one process of a network plugin. Its errors say when the process has
// ended.
type networkCalls struct {
	plugin   *plugin
	instance *instance
}

var _ network.Plugin = (*networkCalls)(nil)

func (c *networkCalls) Describe(ctx context.Context) (*network.About, error) {
	said, err := c.instance.network.Describe(ctx)
	return said, c.plugin.blame(c.instance, err)
}

func (c *networkCalls) Apply(ctx context.Context, change *network.Change) (*network.Applied, error) {
	applied, err := c.instance.network.Apply(ctx, change)
	return applied, c.plugin.blame(c.instance, err)
}

func (c *networkCalls) Attach(ctx context.Context, task *network.Task) (*network.Attached, error) {
	attached, err := c.instance.network.Attach(ctx, task)
	return attached, c.plugin.blame(c.instance, err)
}

func (c *networkCalls) Detach(ctx context.Context, task string) error {
	return c.plugin.blame(c.instance, c.instance.network.Detach(ctx, task))
}

func (c *networkCalls) List(ctx context.Context, node string) ([]string, error) {
	ids, err := c.instance.network.List(ctx, node)
	return ids, c.plugin.blame(c.instance, err)
}

func (c *networkCalls) Stats(ctx context.Context) (*network.Stats, error) {
	stats, err := c.instance.network.Stats(ctx)
	return stats, c.plugin.blame(c.instance, err)
}

func (c *networkCalls) Probe(ctx context.Context, req *network.ProbeRequest) (*network.ProbeResponse, error) {
	res, err := c.instance.network.Probe(ctx, req)
	return res, c.plugin.blame(c.instance, err)
}
