package conformance

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

func asError(err error, into **wire.Error) bool { return errors.As(err, into) }

func (s *suite) describeNetwork() {
	ctx, cancel := context.WithTimeout(s.Context(), describeTime)
	defer cancel()
	description, err := s.Plugin.Network().Describe(ctx, &networkv1.DescribeRequest{})
	if err != nil {
		s.Fatalf("Describe: %v", err)
	}
	if description.GetName() == "" || description.GetVersion() == "" || len(description.GetDrivers()) == 0 {
		s.Errorf("the plugin does not say its name, version and drivers: %v", description)
	}
	for _, driver := range description.GetDrivers() {
		if driver == "" || driver == "host" || driver == "none" {
			s.Errorf("the plugin serves the driver %q: the name is taken", driver)
		}
	}
	if !description.GetHealthy() {
		s.Errorf("the plugin is not healthy: %s", description.GetMessage())
	}
}

func (s *suite) attachAndDetach() {
	s.applied(s.apply(networkID))
	a := s.newTask(1, networkID)
	a.attach()
	a.isListed()
	a.detach()
	// The address can be given again.
	b := s.newTask(1, networkID)
	b.attach()
	b.detach()
	// Several networks.
	s.applied(s.apply(networkID, otherID))
	both := s.newTask(2, networkID, otherID)
	both.attach()
	both.isListed()
	both.detach()
}

func (s *suite) orderOfCalls() {
	change := s.apply(networkID)
	change.Complete = false
	_, err := s.tryApply(change)
	s.refused("Apply of changes before a complete one", err, codes.FailedPrecondition, true)
	a := s.newTask(1, networkID)
	_, err = a.tryAttach()
	s.refused("Attach before Apply", err, codes.FailedPrecondition, true)
	if got := s.listTasks(s.node); len(got) > 0 {
		s.Errorf("List names %q before anything was attached", got)
	}
	if err := a.tryDetach(); err != nil {
		s.Errorf("Detach before Apply: %v", err)
	}
	s.applied(s.apply())
	s.applied(change)
	a.attach()
	a.detach()
}

func (s *suite) unknownIDs() {
	s.applied(s.apply(networkID))
	change := s.apply()
	change.Complete = false
	change.RemovedNetworks = []string{"unknown"}
	change.RemovedPeers = []*networkv1.PeerRef{{NetworkId: networkID, NodeId: "unknown"}, {NetworkId: "unknown", NodeId: "unknown"}}
	change.RemovedServices = []*networkv1.ServiceRef{{NetworkId: networkID, ServiceId: "unknown"}, {NetworkId: "unknown", ServiceId: "unknown"}}
	s.applied(change)
	a := s.newTask(1, networkID)
	if err := a.tryDetach(); err != nil {
		s.Errorf("Detach of an unknown task: %v", err)
	}
	a.request.Attachments[0].NetworkId = "unknown"
	_, err := a.tryAttach()
	s.refused("Attach to an unknown network", err, codes.FailedPrecondition, true)
	a.isGone()
}

func (s *suite) invalidRequests() {
	s.applied(s.apply(networkID))
	for name, spoil := range map[string]func(*networkv1.AttachRequest){
		"no task id":              func(r *networkv1.AttachRequest) { r.TaskId = "" },
		"a task id with a slash":  func(r *networkv1.AttachRequest) { r.TaskId = "../" + r.TaskId },
		"no attachments":          func(r *networkv1.AttachRequest) { r.Attachments = nil },
		"a network named twice":   func(r *networkv1.AttachRequest) { r.Attachments = append(r.Attachments, r.Attachments[0]) },
		"a relative namespace":    func(r *networkv1.AttachRequest) { r.Namespace = "ns" },
		"an address that is none": func(r *networkv1.AttachRequest) { r.Attachments[0].Addresses = []string{"10.213.1"} },
	} {
		a := s.newTask(1, networkID)
		r := proto.CloneOf(a.request)
		spoil(r)
		_, err := call(s, s.Plugin.Network().Attach, r)
		s.refused("Attach with "+name, err, codes.InvalidArgument, false)
		a.isGone()
	}
	s.noNamespace()
	_, err := call(s, s.Plugin.Network().Detach, &networkv1.DetachRequest{})
	s.refused("Detach without a task id", err, codes.InvalidArgument, false)
	_, err = s.tryApply(&networkv1.ApplyRequest{Complete: true})
	s.refused("Apply without a node", err, codes.InvalidArgument, false)
}

// noNamespace leaves the namespace to the plugin, which makes one or refuses that.
func (s *suite) noNamespace() {
	a := s.newTask(1, networkID)
	r := proto.CloneOf(a.request)
	r.Namespace = ""
	got, err := call(s, s.Plugin.Network().Attach, r)
	switch {
	case err != nil:
		s.refused("Attach without a namespace", err, codes.InvalidArgument, false)
	case got.GetNamespace() == "":
		s.Error("Attach without a namespace succeeds, and names none that the plugin made")
	}
	a.detach()
	a.isGone()
}

func (s *suite) missingNamespace() {
	s.applied(s.apply(networkID))
	a := s.newTask(1, networkID)
	there := a.request.Namespace
	a.request.Namespace += "-missing"
	if _, err := a.tryAttach(); err == nil {
		s.Error("Attach with a namespace that does not exist succeeds")
	}
	// The worker detaches what failed to attach.
	a.detach()
	a.request.Namespace = there
	a.attach()
	a.detach()
}

func (s *suite) failingNetwork() {
	r := s.apply(networkID, otherID)
	r.Networks[1].Driver = "no-such-driver"
	s.removesNetworks()
	response, err := s.tryApply(r)
	if err != nil {
		s.Fatalf("Apply with a network of a driver that the plugin does not serve: %v", err)
	}
	if errs := response.GetErrors(); len(errs) != 1 || errs[0].GetNetworkId() != otherID || errs[0].GetMessage() == "" {
		s.Errorf("Apply names %v as failed, want %s alone, with a reason", errs, otherID)
	}
	a := s.newTask(1, networkID)
	a.attach()
	a.detach()
	failing := s.newTask(1, otherID)
	if _, err := failing.tryAttach(); err == nil {
		s.Error("Attach to the network that failed succeeds")
	}
	failing.detach()
}

func (s *suite) repeatedNetworkCalls() {
	r := s.apply(networkID)
	a := s.newTask(1, networkID)
	var first *networkv1.AttachResponse
	for range 2 {
		s.applied(r)
		got := a.attach()
		if first == nil {
			first = got
		} else if !proto.Equal(first, got) {
			s.Errorf("a repeated Attach says %v, the first said %v", got, first)
		}
		a.isListed()
	}
	change := proto.CloneOf(r)
	change.Complete = false
	s.applied(change)
	a.isListed()
	a.detach()
	a.detach()
	change = s.apply()
	change.Complete, change.RemovedNetworks = false, []string{networkID}
	s.applied(change)
	s.applied(change)
	s.applied(s.apply())
	s.applied(s.apply())
}

func (s *suite) goneNamespace() {
	s.applied(s.apply(networkID))
	a := s.newTask(1, networkID)
	a.attach()
	if err := a.remove(); err != nil {
		s.Fatal(err)
	}
	a.detach()
	b := s.newTask(1, networkID)
	b.attach()
	b.detach()
}

func (s *suite) listTasksByNode() {
	s.applied(s.apply(networkID))
	a := s.newTask(1, networkID)
	a.attach()
	if got := s.listTasks("othernode"); slices.Contains(got, a.request.GetTaskId()) {
		s.Errorf("List of another node names %q", got)
	}
	a.isListed()
	a.detach()
}

func (s *suite) manyNetworkCalls() {
	r := s.apply(networkID)
	s.applied(r)
	change := proto.CloneOf(r)
	change.Complete = false
	tasks := make([]*attached, 8)
	for i := range tasks {
		tasks[i] = s.newTask(i, networkID)
	}
	// T's methods that end a rule must not be called in other goroutines.
	errs := make([]error, len(tasks)+1)
	all := func(do func(*attached) error) {
		var wg sync.WaitGroup
		for i, a := range tasks {
			wg.Go(func() { errs[i] = do(a) })
		}
		wg.Go(func() { _, errs[len(tasks)] = s.tryApply(change) })
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			s.Fatalf("calls at once: %v", err)
		}
	}
	responses := make([]*networkv1.AttachResponse, len(tasks))
	all(func(a *attached) (err error) {
		responses[slices.Index(tasks, a)], err = a.tryAttach()
		return err
	})
	var addresses []string
	for i, a := range tasks {
		a.checkResponse(responses[i])
		a.checkNamespace(responses[i])
		a.isListed()
		for _, one := range responses[i].GetAttachments() {
			addresses = append(addresses, one.GetAddresses()...)
		}
	}
	slices.Sort(addresses)
	if n := len(addresses); len(slices.Compact(addresses)) != n {
		s.Errorf("two tasks have one address: %q", addresses)
	}
	all((*attached).tryDetach)
	for _, a := range tasks {
		a.isGone()
	}
}

func (s *suite) givenUp() {
	s.applied(s.apply(networkID))
	for _, moment := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		a := s.newTask(1, networkID)
		ctx, cancel := context.WithTimeout(s.Context(), moment)
		_, _ = s.Plugin.Network().Attach(ctx, a.request)
		cancel()
		a.attach()
		ctx, cancel = context.WithTimeout(s.Context(), moment)
		_, _ = s.Plugin.Network().Detach(ctx, &networkv1.DetachRequest{TaskId: a.request.GetTaskId()})
		cancel()
		a.detach()
		if s.Failed() {
			s.Fatalf("given up after %s", moment)
		}
	}
}

func (s *suite) adoption() {
	r := s.apply(networkID)
	s.applied(r)
	a, b := s.newTask(1, networkID), s.newTask(2, networkID)
	first := a.attach()
	b.attach()
	s.Plugin.Restart()
	a.isListed()
	a.checkNamespace(first)
	// A task that ended meanwhile is detached before anything is applied.
	b.detach()
	s.applied(r)
	a.checkNamespace(first)
	if again := a.attach(); !proto.Equal(first, again) {
		s.Errorf("a new process attaches with %v, it was %v", again, first)
	}
	a.isListed()
	a.detach()
	s.Plugin.Restart()
	a.isGone()
}

// killedDuringNetworkCalls kills the process in the midst of each call. The worker
// repeats the call, after it has applied everything again.
func (s *suite) killedDuringNetworkCalls() {
	r := s.apply(networkID)
	for _, during := range []string{"Apply", "Attach", "Detach"} {
		for _, moment := range []time.Duration{0, time.Millisecond, 4 * time.Millisecond, 15 * time.Millisecond, 50 * time.Millisecond} {
			a := s.newTask(1, networkID)
			if during != "Apply" {
				s.applied(r)
			}
			if during == "Detach" {
				a.attach()
			}
			s.killWithin(moment, map[string]func(){
				"Apply":  func() { _, _ = s.tryApply(r) },
				"Attach": func() { _, _ = a.tryAttach() },
				"Detach": func() { _ = a.tryDetach() },
			}[during])
			if during == "Detach" {
				a.detach()
			}
			s.applied(r)
			a.attach()
			a.isListed()
			a.detach()
			if during == "Apply" {
				s.applied(s.apply())
			}
			if s.Failed() {
				s.Fatalf("killed %s after the begin of %s", moment, during)
			}
		}
	}
}

// killWithin kills the process some time after the begin of a call, and starts another.
func (s *suite) killWithin(moment time.Duration, do func()) {
	s.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-done:
	}
	s.Plugin.Kill()
	<-done
	s.Plugin.Start()
}

func (s *suite) leftovers() {
	s.applied(s.apply(networkID, otherID))
	a := s.newTask(1, otherID)
	a.attach()
	s.Plugin.Restart()
	// The worker detaches the task that it does not know, and no longer names the network.
	a.detach()
	s.applied(s.apply(networkID))
	_, err := a.tryAttach()
	s.refused("Attach to a network that was removed", err, codes.FailedPrecondition, true)
	if s.Left != nil {
		if left := s.Left(otherID); len(left) > 0 {
			s.Errorf("of a network that was removed there is left: %s", strings.Join(left, ", "))
		}
	}
	s.applied(s.apply(networkID, otherID))
	a.attach()
	a.detach()
}

func (s *suite) invalidPart() {
	r := s.apply(networkID)
	r.Peers = []*networkv1.Peer{{NetworkId: networkID, NodeId: "node2", DataPathAddress: "no address", DataPathPort: 4789}}
	s.removesNetworks()
	response, err := s.tryApply(r)
	if err != nil {
		s.Fatalf("Apply with an invalid peer: %v", err)
	}
	if errs := response.GetErrors(); len(errs) > 0 {
		s.Errorf("Apply with an invalid peer names failed networks: %v", errs)
	}
	if w := response.GetWarnings(); len(w) != 1 || w[0].GetNetworkId() != networkID || w[0].GetMessage() == "" {
		s.Errorf("Apply with an invalid peer warns of %v, want of %s alone, with a reason", w, networkID)
	}
	a := s.newTask(1, networkID)
	a.attach()
	a.detach()
}

func (s *suite) setInParts() {
	s.applied(s.apply(networkID))
	a := s.newTask(1, networkID)
	a.attach()
	first, last := s.apply(otherID), s.apply(networkID)
	first.More, last.Complete = true, false
	s.applied(first)
	a.attach()
	s.applied(last)
	a.attach()
	b := s.newTask(2, networkID, otherID)
	b.attach()
	b.detach()
	a.detach()
}

func (s *suite) probe() {
	const serviceID = "service1"
	r := s.apply(networkID)
	r.Services = []*networkv1.Service{{NetworkId: networkID, Id: serviceID, Name: "web", Mode: musterv1.EndpointSpec_DNSRR}}
	s.applied(r)
	request := &networkv1.ProbeRequest{NetworkId: networkID, ServiceId: serviceID, Timeout: durationpb.New(100 * time.Millisecond)}
	if !slices.Contains(s.networkDescription().GetCapabilities(), "probe") {
		_, err := call(s, s.Plugin.Network().Probe, request)
		s.refused("Probe of a plugin without the capability", err, codes.Unimplemented, false)
		return
	}
	response, err := call(s, s.Plugin.Network().Probe, request)
	if err != nil {
		s.Fatalf("Probe: %v", err)
	}
	for _, c := range response.GetChecks() {
		if c.GetKind() == 0 || c.GetResult() == 0 || c.GetResult() != musterv1.NetworkCheck_OK && c.GetMessage() == "" {
			s.Errorf("Probe says %v, want its kind, its result and, unless all is well, a message", c)
		}
	}
	request.ServiceId = "unknown"
	_, err = call(s, s.Plugin.Network().Probe, request)
	s.refused("Probe of an unknown service", err, codes.FailedPrecondition, true)
}

func (s *suite) networkStats() {
	if !slices.Contains(s.networkDescription().GetCapabilities(), "stats") {
		_, err := call(s, s.Plugin.Network().Stats, &networkv1.StatsRequest{})
		s.refused("Stats of a plugin without the capability", err, codes.Unimplemented, false)
		return
	}
	s.applied(s.apply(networkID))
	a := s.newTask(1, networkID)
	a.attach()
	stats, err := call(s, s.Plugin.Network().Stats, &networkv1.StatsRequest{})
	if err != nil {
		s.Fatalf("Stats: %v", err)
	}
	if stats.GetNetworks() != 1 || stats.GetAttachedTasks() != 1 {
		s.Errorf("Stats counts %d networks and %d tasks, want 1 and 1", stats.GetNetworks(), stats.GetAttachedTasks())
	}
	a.detach()
}
