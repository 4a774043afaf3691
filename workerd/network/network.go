// Package network says in the worker's own terms what a worker asks of the network
// plugins of its node: one of them ([Plugin]), and all of them ([Set]).
//
// Networks, peers and services are those of the dispatcher's protocol, which plugins get
// unchanged. As with executors there are two kinds of sets: the plugin host,
// and [NewFixed] for simulation and measurement. A package below adapts each version of
// the contract. Errors are those of executors, see [executor.ErrorOf].
package network

import (
	"context"
	"slices"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

// Plugin connects tasks to networks. Apply and the calls for one task come one at a time.
// All calls may be repeated. What they are given is shared and must not be changed.
type Plugin interface {
	// Describe says what the plugin is, and whether it can work now.
	Describe(ctx context.Context) (*About, error)
	// Apply tells the plugin what the networks of the node consist of. It returns when
	// the kernel does what the change says.
	Apply(ctx context.Context, change *Change) (*Applied, error)
	// Attach connects a task's network namespace to its networks.
	Attach(ctx context.Context, task *Task) (*Attached, error)
	// Detach undoes Attach.
	Detach(ctx context.Context, task string) error
	// List returns the ids of the tasks of a node that the plugin holds anything of.
	List(ctx context.Context, node string) ([]string, error)
	// Stats returns counts for metrics. Capability "stats".
	Stats(ctx context.Context) (*Stats, error)
	// Probe tries whether a service is reached on a network. Capability "probe".
	Probe(ctx context.Context, request *ProbeRequest) (*ProbeResponse, error)
}

// About is what a plugin says of itself.
type About struct {
	Name, Version string
	Healthy       bool
	// Message says why the plugin is not healthy, or what else there is to say.
	Message string
	// Drivers are the network drivers that it serves, Capabilities what it can do beyond
	// the least, and Missing what the kernel lacks.
	Drivers, Capabilities, Missing []string
	// PublicKey is its public key for encrypted networks, if it has one, and EncryptedPort
	// the UDP port at which it gets their traffic.
	PublicKey     []byte
	EncryptedPort uint32
}

// Change is what is new about the networks of a node.
type Change struct {
	// Complete means that whatever the change does not name is removed.
	Complete bool
	Node     Node
	// What is removed with a network or a service is not named.
	Networks        []*networkv1.Network
	RemovedNetworks []string
	Peers           []*networkv1.Peer
	RemovedPeers    []*networkv1.PeerRef
	Services        []*networkv1.Service
	RemovedServices []*networkv1.ServiceRef
	Backends        []*Backends
}

// Applied says by the network's id what is wrong: Failed with a network as a whole, and
// Warnings with something that belongs to it. Tasks can be attached to the latter.
type Applied struct{ Failed, Warnings map[string]string }

// Empty reports whether the change says nothing.
func (c *Change) Empty() bool {
	return !c.Complete && len(c.Networks)+len(c.RemovedNetworks)+len(c.Peers)+len(c.RemovedPeers)+
		len(c.Services)+len(c.RemovedServices)+len(c.Backends) == 0
}

// Backends are backends of a service on a network.
type Backends struct {
	NetworkID, ServiceID string
	// Complete means that these are all.
	Complete bool
	// Changes are packed. The package github.com/musterhq/muster/internal/backends unpacks
	// them, joined.
	Changes [][]byte
}

// Node is the node that a plugin runs on.
type Node struct {
	ID string
	// DataPathAddress and DataPathPort are where other nodes send the traffic of
	// networks to.
	DataPathAddress string
	DataPathPort    uint32
}

// Task is what a plugin is told of a task.
type Task struct {
	ID, Name, ServiceID, ServiceName string
	// Namespace is the path of the task's network namespace. If it is empty, the plugin
	// makes one.
	Namespace string
	// Attachments are in the order of the task's spec.
	Attachments []Attachment
	// Ports are the host ports to publish.
	Ports []*musterv1.PortConfig
}

// Attachment is a task's place on one network. A plugin whose driver chooses addresses
// itself is given none.
type Attachment struct {
	NetworkID     string
	Addresses     []string          `json:",omitempty"`
	Aliases       []string          `json:",omitempty"`
	DriverOptions map[string]string `json:",omitempty"`
}

// Attached tells what a task got.
type Attached struct {
	Namespace   string
	Attachments []Attachment
	// Nameservers are for the task's resolv.conf.
	Nameservers []string
	// Ports are the host ports that are published.
	Ports []*musterv1.PortConfig
}

// Stats are counts since the plugin's process began, and present numbers.
type Stats struct {
	Networks, Services, Backends, Tasks uint64
	DNSAnswers, DNSFailures             uint64
	DroppedPackets                      uint64
	ConntrackEntries, ConntrackLimit    uint64
	// Repairs are what an audit found to differ from what was applied, and set right.
	Repairs uint64
}

// What a plugin is asked to try, and what it has tried.
type (
	ProbeRequest  = networkv1.ProbeRequest
	ProbeResponse = networkv1.ProbeResponse
)

// Set is the network plugins of a node.
type Set interface {
	// Describe asks all plugins what they are, and returns when all have answered or ctx
	// has ended. Plugins that do not work are in it too.
	Describe(ctx context.Context) []*Described
	// Changes receives when something of what Describe returns has changed. There is one
	// reader.
	Changes() <-chan struct{}
}

// Described is a plugin with what it last said of itself. It is not changed once it has
// been handed out.
type Described struct {
	// Name is the plugin's. It stays the same over restarts.
	Name string
	// Plugin is one process of the plugin: another one has another value here, and knows
	// nothing of what this one was told. It is nil while no process runs.
	Plugin Plugin
	// Description is what a node reports of it.
	Description *musterv1.NetworkDriverDescription
	// PublicKey is its public key for encrypted networks, if it has one, and EncryptedPort
	// the UDP port at which it gets their traffic.
	PublicKey     []byte
	EncryptedPort uint32
}

// NewDescribed returns a plugin with what it said of itself. About is nil if it has not
// said anything yet. A description that exceeds a limit of a node's report is withheld.
func NewDescribed(p Plugin, about *About) *Described {
	if about == nil {
		about = &About{}
	}
	health := musterv1.ExecutorDescription_UNHEALTHY
	if about.Healthy {
		health = musterv1.ExecutorDescription_HEALTHY
	}
	d := &Described{Name: about.Name, Plugin: p, PublicKey: about.PublicKey, EncryptedPort: about.EncryptedPort, Description: &musterv1.NetworkDriverDescription{
		Name:         bounds.Text(about.Name, nodereport.MaxName),
		Version:      bounds.Text(about.Version, nodereport.MaxName),
		Health:       health,
		Message:      bounds.Text(about.Message, nodereport.MaxExecutorMessage),
		Drivers:      about.Drivers,
		Capabilities: about.Capabilities,
		Missing:      about.Missing,
	}}
	if err := nodereport.CheckNetworkDriver(d.Description); err != nil {
		d.Description = &musterv1.NetworkDriverDescription{
			Name: d.Description.Name, Version: d.Description.Version,
			Health: musterv1.ExecutorDescription_UNHEALTHY, Message: bounds.Text(err.Error(), nodereport.MaxExecutorMessage),
		}
	}
	return d
}

// Healthy reports whether the plugin said that it can work.
func (d *Described) Healthy() bool {
	return d.Description.GetHealth() == musterv1.ExecutorDescription_HEALTHY
}

// Serves reports whether the plugin serves a network driver.
func (d *Described) Serves(driver string) bool {
	return slices.Contains(d.Description.GetDrivers(), driver)
}

// Can reports whether the plugin has a capability.
func (d *Described) Can(capability string) bool {
	return slices.Contains(d.Description.GetCapabilities(), capability)
}
