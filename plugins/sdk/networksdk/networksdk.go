// Package networksdk is what the author of a network plugin imports. A network
// plugin connects tasks to the networks of one or more drivers; it is a program of
// its own, whose main is
//
//	func main() { networksdk.Serve(mydriver.New()) }
//
// where New returns a [Plugin]. A plugin that can count is a [Statser] too, one that can
// make network namespaces a [NamespaceMaker], and one that can try connections a [Prober].
//
// # What a plugin must know
//
// The worker describes the node's networks with Apply: once completely when the
// plugin's process has started, then as changes. It attaches a task after the
// task's network namespace was created and before anything runs in it, and detaches
// it after the task has ended.
//
// The plugin's process may be killed and started again at any time, and so may the
// worker. Traffic flows on meanwhile. So what a plugin sets up must outlive its
// process, and a new process adopts what it finds: the first Apply and the calls of
// Attach that follow change only what differs. Every call may be repeated, and a
// repeated call succeeds and changes nothing. List returns every task of which
// anything is left, and a complete Apply removes each network that it does not name.
//
// # What a plugin need not check
//
// A plugin gets valid requests in a valid order:
//   - ids are file names: at most 128 letters, digits, ".", "_" and "-". Names and
//     aliases are not empty and hold no white space and no control characters;
//   - each address can be read with [net/netip.MustParseAddr], and has no zone. A list
//     of addresses has at most one for each of IPv4 and IPv6;
//   - each subnet and block can be read with [net/netip.MustParsePrefix], and has no bits
//     set behind its length. Blocks and the node's addresses are in the subnets;
//   - peers, services, backends and attachments are on networks that were applied;
//   - the path of a namespace is absolute and clean, or empty for a [NamespaceMaker];
//   - enums have a value: what the worker left out is the default. Ports to publish
//     are numbers between 1 and 65535;
//   - Apply is called for one request at a time, and Attach and Detach for one at a time
//     of each task, even if the worker gave up an earlier call that still runs;
//   - before the first complete Apply has succeeded, neither changes nor Attach come.
//
// An invalid part of Apply is left out, and the worker is warned of it; a network whose
// new form is invalid stays as it was. A set that comes in several requests is put
// together first. Other invalid requests are refused.
//
// # Errors
//
// [sdk.Temporary] asks the worker to repeat a call later, [sdk.NodeFault] says that
// another node may do better. Any other error fails the task if it comes from Attach,
// and is temporary if it comes from another call. A plugin's state directory is
// [sdk.StateDir]. What it writes to standard error becomes the worker's log.
package networksdk

import (
	"context"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// The contract's messages, which pass through unchanged.
type (
	// Description says what a plugin is, and whether it can work now. The capability
	// "stats" is added to it if the plugin is a [Statser], and "probe" if it is a [Prober].
	Description = networkv1.DescribeResponse
	// ApplyRequest says what the networks of this node consist of.
	ApplyRequest = networkv1.ApplyRequest
	// Node is the node that the plugin runs on.
	Node = networkv1.Node
	// Network is one network as this node sees it.
	Network = networkv1.Network
	// Peer is another node that has tasks on a network.
	Peer = networkv1.Peer
	// Service is a service on one network.
	Service = networkv1.Service
	// Backends are the tasks that get a service's traffic on one network.
	Backends = networkv1.Backends
	// Backend is one of them.
	Backend = networkv1.Backend
	// AttachRequest names a task and the networks that it is on.
	AttachRequest = networkv1.AttachRequest
	// AttachResponse says what the task got.
	AttachResponse = networkv1.AttachResponse
	// Attachment is a task's place on one network.
	Attachment = networkv1.Attachment
	// Port is a port that a task or a service publishes.
	Port = musterv1.PortConfig
	// Stats are counts for metrics.
	Stats = networkv1.StatsResponse
	// ProbeRequest names the service on a network that must be tried.
	ProbeRequest = networkv1.ProbeRequest
	// Check is one attempt to reach something.
	Check = musterv1.NetworkCheck
)

// The modes of a service.
const (
	ModeVIP   = musterv1.EndpointSpec_VIP
	ModeDNSRR = musterv1.EndpointSpec_DNSRR
)

// Plugin connects tasks to networks.
type Plugin interface {
	// Describe says what the plugin is and whether it can work now. It is called
	// every 20 s or so and must answer within 10 s.
	Describe(ctx context.Context) (*Description, error)
	// Apply makes the networks of this node be as the request says, and returns when
	// the kernel does so. A network that cannot be set up must not keep the others
	// from it: failed says why, by the network's id. Tasks are not attached to such a
	// network, unless the error is a [Warning].
	Apply(ctx context.Context, request *ApplyRequest) (failed map[string]error, err error)
	// Attach connects a task's network namespace to networks.
	Attach(ctx context.Context, request *AttachRequest) (*AttachResponse, error)
	// Detach undoes Attach. The namespace may be gone already. A task that is not
	// attached is no error.
	Detach(ctx context.Context, taskID string) error
	// List returns the ids of all tasks of a node for which the plugin holds
	// anything.
	List(ctx context.Context, nodeID string) ([]string, error)
}

// NamespaceMaker is a plugin that makes a task's network namespace where the request of
// Attach has none: it returns its path, finds it again when Attach is repeated, and
// removes it in Detach. Other plugins get no such requests: the SDK refuses them, and
// executors that bring no namespaces cannot use those plugins' networks.
type NamespaceMaker interface {
	Plugin
	MakesNamespaces()
}

// Statser is a plugin that counts.
type Statser interface {
	Stats(ctx context.Context) (*Stats, error)
}

// Prober is a plugin that can try whether a service is reached.
type Prober interface {
	// Probe tries it from a task on the network or, if there is none, from the node's own
	// address, and returns its address with what it has tried.
	Probe(ctx context.Context, request *ProbeRequest) (source string, checks []*Check, err error)
}

// Warning returns an error of a peer, a service or a backend: the network that it belongs
// to works without it. It may be joined with other errors. It returns nil for nil.
func Warning(err error) error {
	if err == nil {
		return nil
	}
	return &warningError{err}
}

type warningError struct{ error }

func (w *warningError) Unwrap() error { return w.error }

// MaxRequest is the size of the largest request in bytes that a plugin reads. A
// complete Apply of 100,000 backends has about a tenth of it.
const MaxRequest = 64 << 20
