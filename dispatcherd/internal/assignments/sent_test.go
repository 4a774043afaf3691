package assignments_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	. "github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/assignments/assignmentstest"
)

// records are what the store says about one node.
type records struct {
	offers map[string]Offer
	specs  map[string]bool
	// configs are versions; a config that is missing has none.
	configs map[string]uint64
	// networks holds those that the node can have.
	networks map[string]*network
	clock    uint64
}

func (w *records) see(key string) Offer {
	o, ok := w.offers[key]
	if !ok {
		return Offer{Key: key, ID: key[len("n/s/"):], Service: "s"}
	}
	if o.Task == nil {
		return o
	}
	// A snapshot makes the join again each time.
	o.Task = proto.CloneOf(o.Task)
	spec := Object{Ref: Ref{Kind: KindSpec, ID: string(o.Task.SpecDigest)}}
	if w.specs[spec.Ref.ID] {
		spec.Message = &musterv1.TaskSpec{}
	}
	o.Objects = []Object{spec}
	for _, ref := range o.Task.Dependencies {
		if id := ref.GetNetwork(); id != "" {
			o.Objects = append(o.Objects, w.network(id))
			continue
		}
		config := Object{Ref: Ref{Kind: KindConfig, ID: ref.GetConfig()}, Version: w.configs[ref.GetConfig()]}
		if config.Version != 0 {
			config.Message = &dispatcherv1.AssignedConfig{Id: config.Ref.ID, Data: []byte(fmt.Sprint(config.Version))}
		}
		o.Objects = append(o.Objects, config)
	}
	o.Lags = o.Task.DesiredState <= musterv1.TaskState_COMPLETE &&
		slices.ContainsFunc(o.Objects, func(object Object) bool {
			return object.Message == nil && object.Ref.Kind != KindNetwork
		})
	return o
}

// networkIDs are those of all networks.
var networkIDs = []string{"net1", "net2"}

// network returns a network as the node sees it.
func (w *records) network(id string) Object {
	o := Object{Ref: Ref{Kind: KindNetwork, ID: id}}
	if n := w.networks[id]; n != nil && !n.gone {
		o.Version, o.Held, o.Members = n.version, n.held, n
		o.Message = &networkv1.Network{Id: id, Vni: uint32(n.version)}
	}
	return o
}

// held returns all networks, as if each had changed.
func (w *records) held() []Object {
	var all []Object
	for _, id := range networkIDs {
		all = append(all, w.network(id))
	}
	return all
}

// changeNetwork changes a network, or a service on it.
func (w *records) changeNetwork(t *rapid.T) {
	w.clock++
	id := rapid.SampledFrom(networkIDs).Draw(t, "network")
	n := w.networks[id]
	if n == nil {
		n = &network{id: id, version: w.clock, services: map[string]uint64{}, readers: map[*networkReader]struct{}{}}
		w.networks[id] = n
	}
	service := rapid.StringMatching(`[p-r]`).Draw(t, "service")
	switch rapid.IntRange(0, 5).Draw(t, "of a network") {
	case 0:
		n.held = !n.held
	case 1:
		n.version = w.clock
	case 2:
		n.gone = !n.gone
	case 3:
		delete(n.services, service)
		n.log = append(n.log, service)
	default:
		n.services[service] = w.clock
		n.log = append(n.log, service)
	}
}

// network is a network with services. It implements [Members].
type network struct {
	id      string
	version uint64
	held    bool
	// gone says that the node cannot have the network now.
	gone bool
	// services holds a version of each, and log the services in the order of their
	// changes.
	services map[string]uint64
	log      []string
	readers  map[*networkReader]struct{}
}

func (n *network) Read() MemberReader {
	r := &networkReader{network: n}
	n.readers[r] = struct{}{}
	return r
}

type networkReader struct {
	network *network
	begun   bool
	read    int
	known   map[string]bool
}

func (r *networkReader) Close() { delete(r.network.readers, r) }

func (r *networkReader) Next() []MemberChange {
	n := r.network
	changed := n.log[r.read:]
	if !r.begun {
		changed, r.begun, r.known = slices.Collect(maps.Keys(n.services)), true, map[string]bool{}
	}
	r.read = len(n.log)
	var all []MemberChange
	for _, id := range slices.Compact(slices.Sorted(slices.Values(changed))) {
		if version, ok := n.services[id]; ok {
			r.known[id] = true
			all = append(all, MemberChange{Size: 20, Object: &dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Service{
				Service: &networkv1.Service{NetworkId: n.id, Id: id, Name: fmt.Sprint(version)},
			}}})
		} else if r.known[id] {
			delete(r.known, id)
			ref := &networkv1.ServiceRef{NetworkId: n.id, ServiceId: id}
			all = append(all, MemberChange{Size: 20, Withdrawn: &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Service{Service: ref}}})
		}
	}
	return all
}

func (w *records) all() []Offer {
	var all []Offer
	for _, key := range slices.Sorted(maps.Keys(w.offers)) {
		all = append(all, w.see(key))
	}
	return all
}

// TestWorkerReachesSnapshot checks that a worker that applies what it receives
// ends up with exactly what the newest snapshot says: whatever changed in
// between, however small the messages are, and whatever arrived late.
func TestWorkerReachesSnapshot(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		protocol := rapid.Uint32Range(0, Protocol+1).Draw(t, "protocol")
		w := &records{offers: map[string]Offer{}, specs: map[string]bool{}, configs: map[string]uint64{}, networks: map[string]*network{}}
		limits := Limits{Objects: rapid.IntRange(1, 5).Draw(t, "objects a message"), Bytes: rapid.IntRange(1, 400).Draw(t, "bytes a message")}
		worker := assignmentstest.New()
		// The worker may come with tasks of its last session.
		for _, id := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"0", "1", "2", "old"}), rapid.ID).Draw(t, "old tasks") {
			worker.Tasks[id] = &dispatcherv1.AssignedTask{Id: id}
		}
		desired := []musterv1.TaskState{musterv1.TaskState_READY, musterv1.TaskState_RUNNING, musterv1.TaskState_SHUTDOWN, musterv1.TaskState_REMOVE}
		dirty := map[string]bool{}
		change := func() {
			w.clock++
			// A task that is gone does not come back: ids are never used again.
			key := fmt.Sprintf("n/s/%d", w.clock)
			if keys := slices.Sorted(maps.Keys(w.offers)); len(keys) > 0 && rapid.Bool().Draw(t, "of a task") {
				key = rapid.SampledFrom(keys).Draw(t, "task")
			}
			dirty[key] = true
			o, ok := w.offers[key]
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
			case ok && o.Task == nil:
				delete(w.offers, key)
			case !ok:
				task := &dispatcherv1.AssignedTask{
					Id: key[len("n/s/"):], ServiceId: "s", ServiceName: "web", DesiredState: rapid.SampledFrom(desired[:2]).Draw(t, "desired"),
					SpecDigest: []byte(rapid.StringMatching(`[a-c]`).Draw(t, "digest")),
					KnownState: rapid.SampledFrom([]musterv1.TaskState{0, musterv1.TaskState_RUNNING}).Draw(t, "known"),
				}
				if protocol > 0 {
					for _, id := range rapid.SliceOfNDistinct(rapid.StringMatching(`[x-z]`), 0, 2, rapid.ID).Draw(t, "configs") {
						task.Dependencies = append(task.Dependencies, &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Config{Config: id}})
					}
				}
				if protocol > 1 && rapid.Bool().Draw(t, "networked") {
					for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(networkIDs), 1, 2, rapid.ID).Draw(t, "networks") {
						task.Dependencies = append(task.Dependencies, &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Network{Network: id}})
					}
				}
				w.offers[key] = Offer{Key: key, ID: task.Id, Service: "s", Version: w.clock, Task: task}
			case what < 4:
				o.Task = proto.CloneOf(o.Task)
				o.Task.DesiredState = max(o.Task.DesiredState, rapid.SampledFrom(desired).Draw(t, "desired"))
				w.offers[key] = o
			case what < 5: // the ports
				o.Version = w.clock
				w.offers[key] = o
			case what < 7: // the task's record
				o.Task, o.Lags = nil, true
				w.offers[key] = o
			default: // the assignment
				delete(w.offers, key)
			}
		}
		appear := func() {
			w.specs[rapid.StringMatching(`[a-c]`).Draw(t, "spec")] = true
			id := rapid.StringMatching(`[x-z]`).Draw(t, "config")
			w.clock++
			w.configs[id] = w.clock
			for key, o := range w.offers {
				if slices.ContainsFunc(o.Task.GetDependencies(), func(ref *dispatcherv1.ObjectRef) bool { return ref.GetConfig() == id }) {
					dirty[key] = true
				}
			}
		}
		deliver := func(messages []*dispatcherv1.Assignments) {
			for _, m := range messages {
				n := len(m.Tasks) + len(m.Removed) + len(m.Withdrawn)
				for _, object := range m.Objects {
					if object.GetTask() != nil {
						n++
					}
				}
				if n > limits.Objects {
					t.Fatalf("a message holds %d tasks and withdrawals, want at most %d", n, limits.Objects)
				}
				if size := proto.Size(m); n > 1 && size > limits.Bytes+200 {
					t.Fatalf("a message has %d bytes, want at most about %d", size, limits.Bytes)
				}
				if err := worker.Apply(m); err != nil {
					t.Fatal(err)
				}
			}
		}
		sent := NewSent(protocol)
		look := func() []Offer {
			for _, key := range sent.Waiting() {
				dirty[key] = true
			}
			var offers []Offer
			for _, key := range slices.Sorted(maps.Keys(dirty)) {
				offers = append(offers, w.see(key))
			}
			clear(dirty)
			return offers
		}
		for range rapid.IntRange(0, 20).Draw(t, "before") {
			change()
			w.changeNetwork(t)
		}
		if rapid.Bool().Draw(t, "objects are there") {
			appear()
		}
		clear(dirty)
		deliver(sent.Complete(w.all(), w.held(), limits))
		for range rapid.IntRange(0, 20).Draw(t, "rounds") {
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				change()
			}
			for range rapid.IntRange(0, 3).Draw(t, "changes of networks") {
				w.changeNetwork(t)
			}
			if rapid.IntRange(0, 3).Draw(t, "appear") == 0 {
				appear()
			}
			deliver(sent.Changes(look(), w.held(), limits, time.Now()))
		}
		// At last all objects are there.
		w.specs = map[string]bool{"a": true, "b": true, "c": true}
		for _, id := range []string{"x", "y", "z"} {
			if w.configs[id] == 0 {
				w.configs[id] = 1
			}
		}
		for _, id := range networkIDs {
			if w.networks[id] == nil {
				w.networks[id] = &network{id: id, version: w.clock + 1, services: map[string]uint64{"p": 1}, readers: map[*networkReader]struct{}{}}
			}
			w.networks[id].gone = false
		}
		deliver(sent.Changes(look(), w.held(), limits, time.Now()))
		if waiting := sent.Waiting(); len(waiting) > 0 {
			t.Fatalf("offers %v still wait, and nothing is missing", waiting)
		}
		want := map[string]*dispatcherv1.AssignedTask{}
		// needed holds what tasks refer to, and whether one of them is to run.
		needed := map[string]bool{}
		for _, o := range w.all() {
			if o.Task == nil {
				continue
			}
			want[o.ID] = o.Task
			for _, key := range assignmentstest.Dependencies(o.Task) {
				needed[key] = needed[key] || o.Task.DesiredState <= musterv1.TaskState_COMPLETE
			}
		}
		if len(want) != len(worker.Tasks) {
			t.Fatalf("worker has tasks %v, want %v", slices.Sorted(maps.Keys(worker.Tasks)), slices.Sorted(maps.Keys(want)))
		}
		for id, task := range want {
			got := worker.Tasks[id]
			if got == nil {
				t.Fatalf("worker lacks task %s", id)
			}
			if got.DesiredState != task.DesiredState || string(got.SpecDigest) != string(task.SpecDigest) {
				t.Fatalf("worker's task is %v, want %v", got, task)
			}
			if got.DesiredState > musterv1.TaskState_COMPLETE {
				continue
			}
			for _, key := range assignmentstest.Dependencies(task) {
				if worker.Objects[key] == nil {
					t.Fatalf("worker lacks %s of task %s", key, id)
				}
			}
		}
		for id, n := range w.networks {
			if n.held && protocol > 1 {
				needed["network/"+id] = true
			}
			n.check(t, worker, needed["network/"+id])
		}
		for key, object := range worker.Objects {
			if strings.HasPrefix(key, "service/") {
				continue
			}
			runs, ok := needed[key]
			if protocol > 0 && !ok {
				t.Fatalf("worker still has %s, and none of its tasks refers to it", key)
			}
			if config, ok := object.(*dispatcherv1.AssignedConfig); ok && runs && string(config.Data) != fmt.Sprint(w.configs[config.Id]) {
				t.Fatalf("worker has version %s of %s, want %d", config.Data, key, w.configs[config.Id])
			}
		}
		// Nothing has changed: there is nothing to send.
		if again := sent.Changes(w.all(), w.held(), limits, time.Now()); len(again) != 0 {
			t.Fatalf("without a change %d messages are sent: %v", len(again), again)
		}
	})
}

// check compares a network with what the worker has of it.
func (n *network) check(t *rapid.T, worker *assignmentstest.Worker, needed bool) {
	got, ok := worker.Objects["network/"+n.id].(*networkv1.Network)
	if needed && (!ok || got.Vni != uint32(n.version)) {
		t.Fatalf("worker has network %v, want version %d", got, n.version)
	}
	if readers := len(n.readers); ok != (readers == 1) || readers > 1 {
		t.Fatalf("%d readers of network %s are open, and the worker has it: %t", readers, n.id, ok)
	}
	for _, service := range []string{"p", "q", "r"} {
		got, has := worker.Objects[assignmentstest.ServiceKey(n.id, service)].(*networkv1.Service)
		version, exists := n.services[service]
		if has != (ok && exists) || has && got.Name != fmt.Sprint(version) {
			t.Fatalf("worker has service %v of network %s, want version %d of those that exist: %v", got, n.id, version, n.services)
		}
	}
}

func TestCompleteSetOfNothingIsOneMessage(t *testing.T) {
	t.Parallel()
	got := NewSent(Protocol).Complete(nil, nil, Limits{Objects: 10, Bytes: 100})
	if len(got) != 1 || !got[0].Complete || !got[0].Last {
		t.Fatalf("the complete set of no tasks is %v, want one empty message", got)
	}
}

// A worker of protocol 0 cannot receive a config, and one of protocol 1 no network, so
// they must not receive tasks that need these.
func TestOldWorkerGetsNoTaskThatNeedsObjectsItDoesNotKnow(t *testing.T) {
	t.Parallel()
	offer := func(id string, needs ...*dispatcherv1.ObjectRef) Offer {
		return Offer{Key: "n/s/" + id, ID: id, Service: "s", Version: 1, Task: &dispatcherv1.AssignedTask{
			Id: id, ServiceName: "web", SpecDigest: []byte("a"), DesiredState: musterv1.TaskState_RUNNING, Dependencies: needs,
		}}
	}
	n := &network{id: "net1", version: 1, held: true, services: map[string]uint64{"p": 1}, readers: map[*networkReader]struct{}{}}
	w := &records{
		specs: map[string]bool{"a": true}, configs: map[string]uint64{"x": 1}, networks: map[string]*network{"net1": n},
		offers: map[string]Offer{
			"n/s/0": offer("0"),
			"n/s/1": offer("1", &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Config{Config: "x"}}),
			"n/s/2": offer("2", &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Network{Network: "net1"}}),
		},
	}
	for protocol, want := range []int{1, 2, 3} {
		worker := assignmentstest.New()
		for _, m := range NewSent(uint32(protocol)).Complete(w.all(), w.held(), Limits{Objects: 10, Bytes: 1000}) {
			if err := worker.Apply(m); err != nil {
				t.Fatal(err)
			}
		}
		if len(worker.Tasks) != want {
			t.Errorf("a worker of protocol %d got %d tasks, want %d", protocol, len(worker.Tasks), want)
		}
		if _, ok := worker.Objects["network/net1"]; ok != (protocol == 2) {
			t.Errorf("a worker of protocol %d got the network that its node holds: %t", protocol, ok)
		}
	}
}
