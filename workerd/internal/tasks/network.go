package tasks

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
	"github.com/musterhq/muster/workerd/network"
)

// A networked task is attached to its networks between Prepare and Start, while it is
// PREPARING, and detached once it has ended. Its addresses are in the store before the
// network plugin hears of them, and out of it before others can get them. A worker that
// dies at any point therefore attaches the task again with the same addresses, or
// detaches it.

// defaultDrain is the drain delay of assignments that name none.
const defaultDrain = 2 * time.Second

// place is a task's place on its networks. It never changes once it is in a record.
type place struct {
	// Plugin is the name of the network plugin that serves the networks.
	Plugin string
	// Provided is the path of the namespace that the executor made, if it made one.
	Provided string `json:",omitempty"`
	// Attachments are what the task is to have.
	Attachments []network.Attachment
	// Namespace and Nameservers are what the plugin answered.
	Namespace   string   `json:",omitempty"`
	Nameservers []string `json:",omitempty"`
}

// encode returns the place as it is stored, or nil.
func (p *place) encode() []byte {
	if p == nil {
		return nil
	}
	// Texts and lists of texts can always be encoded.
	data, _ := json.Marshal(p)
	return data
}

// network returns what an executor is told, or nil.
func (p *place) network() *executor.TaskNetwork {
	if p == nil {
		return nil
	}
	return &executor.TaskNetwork{Namespace: p.Namespace, Nameservers: p.Nameservers}
}

// networked reports whether the task is attached to networks.
func (t *task) networked() bool { return len(t.assigned.GetNetworks()) > 0 }

// restorePlace takes in what was stored of the task's place.
func (t *task) restorePlace(stored []byte) {
	if stored == nil {
		return
	}
	p := &place{}
	if err := json.Unmarshal(stored, p); err != nil {
		t.m.log.Error("failed to restore the addresses of a task", zap.String("task", t.id), zap.Error(err))
		return
	}
	t.current.place = p
	t.m.networks.Restore(p.Plugin, t.attachment(p), lifecycle.Ended(t.state()))
}

// wantedAttachments returns the attachments that the task's spec asks for.
func (t *task) wantedAttachments() []network.Attachment {
	wanted := make([]network.Attachment, len(t.assigned.GetNetworks()))
	for i, id := range t.assigned.GetNetworks() {
		config := t.configOf(id)
		wanted[i] = network.Attachment{NetworkID: id, Aliases: config.GetAliases(), DriverOptions: config.GetDriverOptions()}
	}
	return wanted
}

// configOf returns what the task's spec says of a network. It says nothing of the
// ingress network.
func (t *task) configOf(id string) *musterv1.NetworkAttachmentConfig {
	i := slices.IndexFunc(t.spec.GetNetworks(), func(n *musterv1.NetworkAttachmentConfig) bool { return n.GetTarget() == id })
	if i < 0 {
		return nil
	}
	return t.spec.GetNetworks()[i]
}

// attachment returns what a network plugin is told of the task, or nil.
func (t *task) attachment(p *place) *network.Task {
	if p == nil {
		return nil
	}
	d := t.describe()
	return &network.Task{
		ID: t.id, Name: d.Name, ServiceID: d.ServiceID, ServiceName: d.ServiceName,
		Namespace: p.Provided, Attachments: p.Attachments, Ports: t.assigned.GetPorts(),
	}
}

// reserve returns the place of a networked task, with addresses, and nil for other tasks.
func (c *call) reserve(e *executor.Described) (*place, error) {
	if !c.networked {
		return nil, nil
	}
	if !e.Can(executor.ProvidesNetwork) && !e.Can(executor.AcceptsNetwork) {
		return nil, &executor.Error{
			Code: codes.FailedPrecondition, BlameNode: true, NotCalled: true,
			Err: fmt.Errorf("executor %s cannot run tasks that are attached to networks", e.Name),
		}
	}
	if c.known.place != nil {
		return c.known.place, nil
	}
	attachments, plugin, err := c.t.m.networks.Reserve(c.ctx, c.t.id, c.wanted)
	if err != nil {
		failed := *executor.ErrorOf(err)
		failed.NotCalled = true
		return nil, &failed
	}
	return &place{Plugin: plugin, Attachments: attachments}, nil
}

// namespaced notes the namespace of a networked task that was prepared. The task is
// attached before it is READY.
func (c *call) namespaced(e *executor.Described, p *place, prepared *executor.Prepared) (func(t *task), error) {
	if prepared.Namespace == "" && !e.Can(executor.AcceptsNetwork) {
		return nil, &executor.Error{Temporary: true, BlameNode: true, Err: fmt.Errorf("executor %s did not name the task's network namespace", e.Name)}
	}
	next := *p
	next.Provided = prepared.Namespace
	return func(t *task) {
		t.prepared = true
		t.update(func(r *record) {
			r.handle, r.place = prepared.Handle, &next
			r.status.Message, r.status.Error = "attaching to networks", ""
		})
	}, nil
}

// attach connects the task to its networks.
func (c *call) attach() (func(t *task), error) {
	slow := c.reportSlow("network plugin " + c.known.place.Plugin)
	attached, err := c.t.m.networks.Attach(c.ctx, c.attachment)
	slow.Stop()
	if err != nil {
		return nil, err
	}
	if attached.Namespace == "" {
		return nil, &executor.Error{Temporary: true, BlameNode: true, Err: fmt.Errorf("network plugin %s did not name the task's network namespace", c.known.place.Plugin)}
	}
	at := time.Now()
	return func(t *task) {
		t.prepared = false
		next := *c.known.place
		next.Namespace, next.Nameservers = attached.Namespace, attached.Nameservers
		t.move(c.step, at, func(r *record) {
			r.place = &next
			r.status.Ports, r.status.Networks = attached.Ports, t.attachments(attached.Attachments, next.Attachments)
		})
	}, nil
}

// attachAgain tells the network plugin what has changed around the task, if anything has
// that it was told.
func (c *call) attachAgain() (*network.Attached, error) {
	if c.attachment == nil || c.t.m.networks.Told(c.attachment) {
		return nil, nil
	}
	return c.t.m.networks.Attach(c.ctx, c.attachment)
}

// attachments returns what is reported of the task's networks: the addresses that the
// plugin names or, where it names none, those that it was given.
func (t *task) attachments(named, given []network.Attachment) []*musterv1.NetworkAttachment {
	reported := make([]*musterv1.NetworkAttachment, len(given))
	for i, at := range given {
		addresses := at.Addresses
		if j := slices.IndexFunc(named, func(n network.Attachment) bool { return n.NetworkID == at.NetworkID }); j >= 0 && len(addresses) == 0 {
			addresses = named[j].Addresses
		}
		reported[i] = &musterv1.NetworkAttachment{NetworkId: at.NetworkID, Addresses: addresses, Aliases: t.configOf(at.NetworkID).GetAliases()}
	}
	return reported
}

// detach disconnects the task from its networks. Its addresses can be given to others
// once the store no longer has them.
func (c *call) detach() (func(t *task), error) {
	if err := c.t.m.networks.Detach(c.ctx, c.t.id); err != nil {
		return nil, err
	}
	return func(t *task) { t.update(func(r *record) { r.place = nil }) }, nil
}

// draining reports whether a networked task runs on for a while before it is shut down:
// others send it new connections until they have heard that it stops.
func (t *task) draining() bool {
	if !t.networked() || t.state() != musterv1.TaskState_RUNNING {
		return false
	}
	if t.drainUntil.IsZero() {
		delay := defaultDrain
		if d := t.assigned.GetDrainDelay(); d != nil {
			delay = d.AsDuration()
		}
		t.drainUntil = time.Now().Add(delay)
	}
	if !time.Now().Before(t.drainUntil) {
		return false
	}
	t.wakeAt(t.drainUntil)
	return true
}
