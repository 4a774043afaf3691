package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// describeTime is how long Describe may take.
const describeTime = 10 * time.Second

// NetworkOptions say how networks are made for a network plugin.
type NetworkOptions struct {
	// Driver is the driver of the networks; "" is the first that the plugin names.
	Driver string
	// DriverOptions are those of the networks.
	DriverOptions map[string]string
	// OwnAddresses says that the driver chooses addresses itself: networks have no subnets.
	OwnAddresses bool
	// Namespaces says that tasks get real network namespaces. Otherwise a file stands
	// for a namespace, and what is in it is not looked at.
	Namespaces bool
}

// CanMakeNamespaces returns an error that says why this process cannot make network
// namespaces.
func CanMakeNamespaces() error {
	dir, err := shortTempDir()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	_, remove, err := newNamespace(dir, "ns")
	if err != nil {
		return err
	}
	return remove()
}

// NetworkRules are all rules for network plugins, in the order in which an author meets
// them.
func NetworkRules() []Rule {
	return []Rule{
		{Name: "Describe", Asks: "Describe says name, version, drivers and health in time", test: (*suite).describeNetwork},
		{Name: "Lifecycle", Asks: "a task is attached with the given addresses, listed, and detached", test: (*suite).attachAndDetach},
		{Name: "Order", Asks: "before a complete Apply, changes and Attach are refused for now; List and Detach succeed", test: (*suite).orderOfCalls},
		{Name: "UnknownIDs", Asks: "what is not known can be detached and removed, and not be attached to", test: (*suite).unknownIDs},
		{Name: "InvalidRequests", Asks: "invalid requests are refused with INVALID_ARGUMENT and leave nothing", test: (*suite).invalidRequests},
		{Name: "FailingNamespace", Asks: "a task whose namespace is missing fails, and leaves nothing", test: (*suite).missingNamespace},
		{Name: "FailingNetwork", Asks: "a network that cannot be set up is named, and keeps no other from it", test: (*suite).failingNetwork},
		{Name: "RepeatedCalls", Asks: "a repeated call succeeds and changes nothing", test: (*suite).repeatedNetworkCalls},
		{Name: "GoneNamespace", Asks: "a task whose namespace is gone can be detached", test: (*suite).goneNamespace},
		{Name: "ListByNode", Asks: "List tells of the tasks of one node", test: (*suite).listTasksByNode},
		{Name: "ManyAtOnce", Asks: "calls for different tasks, and Apply, may be open at once", test: (*suite).manyNetworkCalls},
		{Name: "GivenUp", Asks: "a call that the worker gave up can be repeated", test: (*suite).givenUp},
		{Name: "RestartBetweenCalls", Asks: "a process killed between calls is followed by one that adopts all", test: (*suite).adoption},
		{Name: "KilledAtAnyMoment", Asks: "a process killed within a call leaves nothing doubled, lost or orphaned", test: (*suite).killedDuringNetworkCalls},
		{Name: "InvalidPart", Asks: "an invalid peer is left out with a warning, and keeps no task from the network", test: (*suite).invalidPart},
		{Name: "SetInParts", Asks: "a complete set in several requests removes nothing before the last", test: (*suite).setInParts},
		{Name: "Probe", Asks: "what was tried is named, or Probe is UNIMPLEMENTED", test: (*suite).probe},
		{Name: "Leftovers", Asks: "a complete Apply removes the networks that it does not name", test: (*suite).leftovers},
		{Name: "Stats", Asks: "Stats counts networks and tasks", Needs: "stats", test: (*suite).networkStats},
		{Name: "DiesWithItsHost", Asks: "the process ends when its worker dies", test: (*suite).closes},
	}
}

// untriedOfNetwork says what of a rule that was tried was left out.
func untriedOfNetwork(rule Rule, h *Harness) []string {
	switch rule.Name {
	case "Describe", "Order", "InvalidRequests", "Stats", "DiesWithItsHost":
		return nil
	}
	untried := []string{"whether anything is left of networks outside of tasks' namespaces and the state directory: what that is, the plugin alone knows"}
	if !h.Network.Namespaces {
		untried = append(untried, "whether the tasks' namespaces hold what the plugin says: namespaces cannot be made here")
	}
	return untried
}

// attached is a task of a network plugin.
type attached struct {
	*suite
	request *networkv1.AttachRequest
	// remove removes the namespace.
	remove func() error
}

// networkID is the network that the rules use, and otherID one that some use too.
const networkID, otherID = "net1", "net2"

// subnetOf is the third byte of a network's subnet.
func subnetOf(id string) int {
	if id == otherID {
		return 20
	}
	return 10
}

// apply returns a complete request with networks of the given ids.
func (s *suite) apply(ids ...string) *networkv1.ApplyRequest {
	s.Helper()
	r := &networkv1.ApplyRequest{Complete: true, Node: &networkv1.Node{Id: s.node, DataPathAddress: "192.0.2.1", DataPathPort: 4789}}
	for _, id := range ids {
		n := &networkv1.Network{Id: id, Name: "suite-" + id, Driver: s.Network.Driver, DriverOptions: s.Network.DriverOptions}
		if n.Driver == "" {
			n.Driver = s.networkDescription().GetDrivers()[0]
		}
		if !s.Network.OwnAddresses {
			third := subnetOf(id)
			n.Vni = uint32(5000 + third)
			n.Subnets = []string{fmt.Sprintf("10.213.%d.0/24", third)}
			n.Blocks = []string{fmt.Sprintf("10.213.%d.64/26", third)}
			n.NodeAddresses = []string{fmt.Sprintf("10.213.%d.64", third)}
			r.Peers = append(r.Peers, &networkv1.Peer{
				NetworkId: id, NodeId: "peer", DataPathAddress: "192.0.2.2", DataPathPort: 4789, Blocks: []string{fmt.Sprintf("10.213.%d.128/26", third)},
			})
			r.Services = append(r.Services, &networkv1.Service{
				NetworkId: id, Id: "suiteid", Name: "suite", Mode: musterv1.EndpointSpec_VIP, VirtualIps: []string{fmt.Sprintf("10.213.%d.2", third)},
			})
			r.Backends = append(r.Backends, &networkv1.Backends{NetworkId: id, ServiceId: "suiteid", Complete: true, Backends: []*networkv1.Backend{
				{TaskId: "faraway", NodeId: "peer", Slot: 1, Addresses: []string{fmt.Sprintf("10.213.%d.129", third)}},
			}})
		}
		r.Networks = append(r.Networks, n)
	}
	return r
}

func (s *suite) tryApply(r *networkv1.ApplyRequest) (*networkv1.ApplyResponse, error) {
	s.Helper()
	return call(s, s.Plugin.Network().Apply, proto.CloneOf(r))
}

// applied carries out a request in which nothing may fail, and sees to it that the
// networks are removed in the end.
func (s *suite) applied(r *networkv1.ApplyRequest) {
	s.Helper()
	s.removesNetworks()
	response, err := s.tryApply(r)
	if err != nil {
		s.Fatalf("Apply: %v", err)
	}
	if len(response.GetErrors()) > 0 {
		s.Fatalf("Apply: %v", response.GetErrors())
	}
}

// removesNetworks takes care that no network is left after the rule, as far as that is
// in the plugin's hands.
func (s *suite) removesNetworks() {
	if s.cleans {
		return
	}
	s.cleans = true
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.patience())
		defer cancel()
		_, _ = s.Plugin.Network().Apply(ctx, &networkv1.ApplyRequest{Complete: true, Node: &networkv1.Node{Id: s.node}})
	})
}

// newTask makes a task with a namespace, and takes care that nothing of it is left.
func (s *suite) newTask(number int, networks ...string) *attached {
	s.Helper()
	id := nextName("t")
	dir, err := shortTempDir()
	if err != nil {
		s.Fatal(err)
	}
	a := &attached{suite: s, request: &networkv1.AttachRequest{
		TaskId: id, TaskName: "suite.1." + id, ServiceId: "suiteid", ServiceName: "suite", Namespace: filepath.Join(dir, "ns"),
	}}
	if s.Network.Namespaces {
		if _, a.remove, err = newNamespace(dir, "ns"); err != nil {
			s.Fatal(err)
		}
	} else {
		if err := os.WriteFile(a.request.Namespace, nil, 0o600); err != nil {
			s.Fatal(err)
		}
		a.remove = func() error { return os.Remove(a.request.Namespace) }
	}
	for _, network := range networks {
		attachment := &networkv1.Attachment{NetworkId: network, DriverOptions: s.Network.DriverOptions}
		if !s.Network.OwnAddresses {
			attachment.Addresses = []string{fmt.Sprintf("10.213.%d.%d", subnetOf(network), 65+number)}
		}
		a.request.Attachments = append(a.request.Attachments, attachment)
	}
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.patience())
		defer cancel()
		_, _ = s.Plugin.Network().Detach(ctx, &networkv1.DetachRequest{TaskId: id})
		_ = a.remove()
		_ = os.RemoveAll(dir)
	})
	return a
}

func (a *attached) tryAttach() (*networkv1.AttachResponse, error) {
	return call(a.suite, a.Plugin.Network().Attach, proto.CloneOf(a.request))
}

func (a *attached) tryDetach() error {
	_, err := call(a.suite, a.Plugin.Network().Detach, &networkv1.DetachRequest{TaskId: a.request.GetTaskId()})
	return err
}

// attach attaches the task, and checks what the plugin says and does.
func (a *attached) attach() *networkv1.AttachResponse {
	a.Helper()
	response, err := a.tryAttach()
	if err != nil {
		a.Fatalf("Attach: %v", err)
	}
	a.checkResponse(response)
	a.checkNamespace(response)
	return response
}

// checkResponse checks that the response names each network with an interface and the
// addresses asked for.
func (a *attached) checkResponse(response *networkv1.AttachResponse) {
	a.Helper()
	got := map[string]*networkv1.Attachment{}
	for _, one := range response.GetAttachments() {
		if got[one.GetNetworkId()] != nil {
			a.Errorf("Attach names network %s twice", one.GetNetworkId())
		}
		got[one.GetNetworkId()] = one
	}
	for _, asked := range a.request.GetAttachments() {
		one := got[asked.GetNetworkId()]
		if one == nil {
			a.Errorf("Attach does not say what the task got on network %s", asked.GetNetworkId())
			continue
		}
		if name := one.GetInterface(); name == "" || len(name) > 15 {
			a.Errorf("Attach names the interface %q: want 1 to 15 bytes", name)
		}
		if len(one.GetAddresses()) == 0 {
			a.Errorf("Attach says no address on network %s", asked.GetNetworkId())
		}
		for _, text := range one.GetAddresses() {
			if _, err := netip.ParseAddr(text); err != nil {
				a.Errorf("Attach says the address %q: want an IP address without a prefix length", text)
			}
		}
		if !a.Network.OwnAddresses && !slices.Equal(one.GetAddresses(), asked.GetAddresses()) {
			a.Errorf("Attach says addresses %q, want those asked for: %q", one.GetAddresses(), asked.GetAddresses())
		}
	}
	if len(got) > len(a.request.GetAttachments()) {
		a.Errorf("Attach names %d networks, the request %d", len(got), len(a.request.GetAttachments()))
	}
	for _, text := range response.GetNameservers() {
		if _, err := netip.ParseAddr(text); err != nil {
			a.Errorf("Attach says the name server %q: want an IP address", text)
		}
	}
}

// checkNamespace checks that the namespace has the interfaces and addresses of a response.
func (a *attached) checkNamespace(response *networkv1.AttachResponse) {
	a.Helper()
	if !a.Network.Namespaces {
		return
	}
	found, err := interfacesIn(a.request.GetNamespace())
	if err != nil {
		a.Fatal(err)
	}
	for _, one := range response.GetAttachments() {
		addresses, ok := found[one.GetInterface()]
		if !ok {
			a.Errorf("the namespace has no interface %q, which Attach named", one.GetInterface())
		}
		for _, text := range one.GetAddresses() {
			if ok && !slices.Contains(addresses, text) {
				a.Errorf("interface %q has the addresses %q, and not %s, which Attach named", one.GetInterface(), addresses, text)
			}
		}
	}
	// Besides there is the loopback, and what a kernel makes in each namespace.
	empty := newNamespaceInterfaces(a.suite)
	if got, want := len(found), empty+len(response.GetAttachments()); got != want {
		a.Errorf("the namespace has %d interfaces, want %d: %v", got, want, found)
	}
}

// newNamespaceInterfaces counts the interfaces of a namespace in which nothing was done.
func newNamespaceInterfaces(s *suite) int {
	dir, err := shortTempDir()
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path, remove, err := newNamespace(dir, "ns")
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = remove() }()
	found, err := interfacesIn(path)
	if err != nil {
		s.Fatal(err)
	}
	return len(found)
}

// detach detaches the task, and checks that nothing is left of it.
func (a *attached) detach() {
	a.Helper()
	if err := a.tryDetach(); err != nil {
		a.Fatalf("Detach: %v", err)
	}
	a.isGone()
}

// isGone checks that nothing is left of the task.
func (a *attached) isGone() {
	a.Helper()
	if slices.Contains(a.listTasks(a.node), a.request.GetTaskId()) {
		a.Error("after Detach the task is listed")
	}
	if a.Left != nil {
		if left := a.Left(a.request.GetTaskId()); len(left) > 0 {
			a.Errorf("after Detach there is left: %s", strings.Join(left, ", "))
		}
	}
	if _, err := os.Stat(a.request.GetNamespace()); err == nil {
		a.checkNamespace(&networkv1.AttachResponse{})
	}
}

// isListed checks that the task is listed, once.
func (a *attached) isListed() {
	a.Helper()
	n := 0
	for _, id := range a.listTasks(a.node) {
		if id == a.request.GetTaskId() {
			n++
		}
	}
	if n != 1 {
		a.Errorf("the task is listed %d times, want once", n)
	}
}

func (s *suite) listTasks(node string) []string {
	s.Helper()
	response, err := call(s, s.Plugin.Network().List, &networkv1.ListRequest{NodeId: node})
	if err != nil {
		s.Fatalf("List: %v", err)
	}
	return response.GetTaskIds()
}

func (s *suite) networkDescription() *networkv1.DescribeResponse {
	s.Helper()
	description, err := call(s, s.Plugin.Network().Describe, &networkv1.DescribeRequest{})
	if err != nil {
		s.Fatalf("Describe: %v", err)
	}
	if len(description.GetDrivers()) == 0 {
		s.Fatal("the plugin names no driver")
	}
	return description
}

// refused checks that a call failed with a code, and whether that is temporary.
func (s *suite) refused(what string, err error, code codes.Code, temporary bool) {
	s.Helper()
	var e *wire.Error
	if !asError(err, &e) {
		s.Errorf("%s succeeds, want %s", what, code)
		return
	}
	if e.Code != code || e.Temporary != temporary {
		s.Errorf("%s = %s (temporary: %t): %v; want %s (temporary: %t)", what, e.Code, e.Temporary, e, code, temporary)
	}
	if e.Error() == "" {
		s.Errorf("%s fails without a reason", what)
	}
}
