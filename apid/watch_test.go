package apid_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// watcher reads a watch.
type watcher struct {
	t      testing.TB
	stream grpc.ServerStreamingClient[musterv1.WatchResponse]
	cancel context.CancelFunc
	token  string
	queue  []*musterv1.WatchEvent
}

func (a *api) watch(req *musterv1.WatchRequest) *watcher {
	a.t.Helper()
	w, err := a.tryWatch(req)
	if err != nil {
		a.t.Fatal(err)
	}
	return w
}

// tryWatch opens a watch and reads its first message.
func (a *api) tryWatch(req *musterv1.WatchRequest) (*watcher, error) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	a.t.Cleanup(cancel)
	stream, err := a.Watch(ctx, req)
	if err != nil {
		a.t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if len(first.Events) != 0 || first.ResumeToken == "" {
		a.t.Fatalf("first message is %v", first)
	}
	return &watcher{t: a.t, stream: stream, cancel: cancel, token: first.ResumeToken}, nil
}

// next returns the next event.
func (w *watcher) next() *musterv1.WatchEvent {
	w.t.Helper()
	for len(w.queue) == 0 {
		m, err := w.stream.Recv()
		if err != nil {
			w.t.Fatal(err)
		}
		w.token, w.queue = m.ResumeToken, m.Events
	}
	e := w.queue[0]
	w.queue = w.queue[1:]
	return e
}

// until skips events up to one that is wanted.
func (w *watcher) until(what string, cond func(*musterv1.WatchEvent) bool) *musterv1.WatchEvent {
	w.t.Helper()
	var seen []string
	for range 1000 {
		e := w.next()
		if cond(e) {
			return e
		}
		seen = append(seen, fmt.Sprint(e.Action, " ", e.Kind, " ", e.Id))
	}
	w.t.Fatalf("no event is %s, among %s", what, strings.Join(seen, ", "))
	return nil
}

func is(action musterv1.WatchAction, kind musterv1.ObjectKind, id string) func(*musterv1.WatchEvent) bool {
	return func(e *musterv1.WatchEvent) bool { return e.Action == action && e.Kind == kind && e.Id == id }
}

func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		w := a.watch(&musterv1.WatchRequest{IncludeOld: true})
		s := a.create(webSpec("web"))
		e := w.until("the creation", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_SERVICE, s.Id))
		if e.GetService().GetSpec().GetName() != "web" || e.Old != nil || e.At == nil {
			t.Errorf("created: %v", e)
		}
		id := c.task(s, 1, nil)
		e = w.until("the task", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_TASK, id))
		if e.GetTask().GetServiceName() != "web" || e.GetTask().GetSpec().GetContainer().GetImage() != "nginx" {
			t.Errorf("task: %v", e)
		}
		c.assign(s, 1, id, "n1", runningStatus())
		converged := false
		e = w.until("the task running", func(e *musterv1.WatchEvent) bool {
			converged = converged || e.GetService().GetStatus().GetConverged()
			return e.GetTask().GetStatus().GetState() == musterv1.TaskState_RUNNING
		})
		if e.Action != musterv1.WatchAction_UPDATE || e.GetOldTask().GetStatus().GetState() >= musterv1.TaskState_RUNNING {
			t.Errorf("task: %v", e)
		}
		if !converged {
			w.until("the service converged", func(e *musterv1.WatchEvent) bool { return e.GetService().GetStatus().GetConverged() })
		}
		c.node("n1", "alpha")
		w.until("the node", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_NODE, "n1"))
		if _, err := a.UpdateCluster(t.Context(), &musterv1.UpdateClusterRequest{Spec: &musterv1.ClusterSpec{Labels: map[string]string{"a": "b"}}}); err != nil {
			t.Fatal(err)
		}
		w.until("the cluster", is(musterv1.WatchAction_UPDATE, musterv1.ObjectKind_CLUSTER, "default"))
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: s.Id}); err != nil {
			t.Fatal(err)
		}
		e = w.until("the removal", is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_SERVICE, s.Id))
		if e.GetService().GetSpec().GetName() != "web" {
			t.Errorf("removed: %v", e)
		}
	})
}

// TestTaskGoesInAnyOrder has the records of a task that is removed seen to go in
// another order than they went: each table is followed for itself. The task must
// not seem to go back to where it had no node.
func TestTaskGoesInAnyOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("n1", "host1")
		a := c.apid()
		s := a.create(webSpec("web"))
		id := c.task(s, 1, nil)
		c.assign(s, 1, id, "n1", runningStatus())
		settled(t, "the task runs", func() bool {
			got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: id})
			return err == nil && got.Task.Status.State == musterv1.TaskState_RUNNING
		})
		w := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})
		k := state.NodeTaskKey("n1", s.Id, id)
		c.update(func(tx *store.Tx) { c.tables.Statuses.Delete(tx, k) })
		c.update(func(tx *store.Tx) { c.tables.Assignments.Delete(tx, k) })
		other := c.task(s, 2, nil)
		w.until("the other task is there", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_TASK, other))
		got, err := a.GetTask(t.Context(), &musterv1.GetTaskRequest{Task: id})
		if err != nil {
			t.Fatal(err)
		}
		if got.Task.NodeId != "n1" || got.Task.Status.State != musterv1.TaskState_RUNNING {
			t.Errorf("the task is %s on node %q, want what it was when it was whole", got.Task.Status.State, got.Task.NodeId)
		}
		c.update(func(tx *store.Tx) { c.tables.Tasks.Delete(tx, state.TaskKey(s.Id, 1, "", id)) })
		e := w.until("the task is gone", is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_TASK, id))
		if state := e.GetTask().GetStatus().GetState(); state != musterv1.TaskState_RUNNING {
			t.Errorf("the task was last %s, want RUNNING", state)
		}
	})
}

func TestWatchFilters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		web, db := a.create(webSpec("web")), a.create(webSpec("db"))
		settled(t, "the store has both", func() bool {
			_, ok := c.tables.Services.Get(c.store.Snapshot(), db.Id)
			return ok
		})
		byName := a.watch(&musterv1.WatchRequest{Services: []string{"WEB"}})
		deletes := a.watch(&musterv1.WatchRequest{Actions: []musterv1.WatchAction{musterv1.WatchAction_DELETE}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})
		named := a.watch(&musterv1.WatchRequest{Names: []string{"db"}, Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})

		dbTask := c.task(db, 1, nil)
		webTask := c.task(web, 1, nil)
		c.node("n1", "web")
		byName.until("the task", func(e *musterv1.WatchEvent) bool {
			if e.Kind == musterv1.ObjectKind_NODE || e.Id == db.Id || e.Id == dbTask {
				t.Errorf("not asked for: %v", e)
			}
			return e.Id == webTask
		})
		if e := named.next(); e.Id != dbTask {
			t.Errorf("got %v, want the task of db", e)
		}
		// A task is told of even when its service, and so its name, has gone.
		if _, err := a.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "db"}); err != nil {
			t.Fatal(err)
		}
		c.update(func(tx *store.Tx) {
			for e := range c.tables.Tasks.Scan(tx, db.Id+"/") {
				c.tables.Tasks.Delete(tx, e.Key)
			}
		})
		for _, w := range []*watcher{named, deletes} {
			w.until("the removal", is(musterv1.WatchAction_DELETE, musterv1.ObjectKind_TASK, dbTask))
		}

		for name, test := range map[string]struct {
			req  *musterv1.WatchRequest
			code codes.Code
		}{
			"volumes":    {&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_VOLUME}}, codes.Unimplemented},
			"no kind":    {&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{0}}, codes.InvalidArgument},
			"no action":  {&musterv1.WatchRequest{Actions: []musterv1.WatchAction{9}}, codes.InvalidArgument},
			"token":      {&musterv1.WatchRequest{ResumeToken: "x"}, codes.InvalidArgument},
			"long token": {&musterv1.WatchRequest{ResumeToken: strings.Repeat("A", 9000)}, codes.InvalidArgument},
		} {
			if _, err := a.tryWatch(test.req); err == nil {
				t.Errorf("%s: no error", name)
			} else {
				wantCode(t, err, test.code)
			}
		}
	})
}

// follower keeps what a watch tells of services, as a client would: it continues
// from its last token, and lists again only when it is told to.
type follower struct {
	t       testing.TB
	known   map[string]uint64
	token   string
	relists int
}

var servicesOnly = []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE}

// follow watches a replica until cond holds.
func (f *follower) follow(a *api, what string, cond func() bool) {
	f.t.Helper()
	w, err := a.tryWatch(&musterv1.WatchRequest{Kinds: servicesOnly, ResumeToken: f.token})
	if err != nil {
		wantCode(f.t, err, codes.OutOfRange)
		w = a.watch(&musterv1.WatchRequest{Kinds: servicesOnly})
	}
	if err != nil || f.token == "" {
		f.relists++
		l, err := a.ListServices(f.t.Context(), &musterv1.ListServicesRequest{PageSize: 1000})
		if err != nil {
			f.t.Fatal(err)
		}
		clear(f.known)
		for _, s := range l.Services {
			f.known[s.Id] = s.Meta.Version
		}
	}
	defer w.cancel()
	// A cut in the middle of a message is as good as one after it only if the
	// token is that of the message.
	for len(w.queue) > 0 || !cond() {
		e := w.next()
		v := e.GetService().GetMeta().GetVersion()
		if e.Action == musterv1.WatchAction_DELETE {
			delete(f.known, e.Id)
			continue
		}
		if v < f.known[e.Id] {
			f.t.Errorf("%s: service %s goes back from version %d to %d", what, e.Id, f.known[e.Id], v)
		}
		f.known[e.Id] = v
	}
	f.token = w.token
}

// A watch that is cut off continues at any replica, and misses nothing, removals
// included; or it is told to list again.
func TestWatchResumesAtAnotherReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		replicas := []*api{c.apid(), c.apid()}
		for _, r := range replicas {
			if _, err := r.ListServices(t.Context(), &musterv1.ListServicesRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		f := &follower{t: t, known: map[string]uint64{}}
		has := func(id string) bool { return f.known[id] > 0 }
		const rounds = 30
		for round := range rounds {
			here, there := replicas[round%2], replicas[(round+1)%2]
			s := here.create(webSpec(fmt.Sprintf("web-%d", round)))
			f.follow(here, "creation", func() bool { return has(s.Id) })
			// While there is no watch, one service goes, and one comes and is scaled.
			last := here.create(webSpec(fmt.Sprintf("last-%d", round)))
			if _, err := here.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: s.Id}); err != nil {
				t.Fatal(err)
			}
			scaled, err := here.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: last.Id, Replicas: 5})
			if err != nil {
				t.Fatal(err)
			}
			f.follow(there, "the rest", func() bool {
				return !has(s.Id) && f.known[last.Id] == scaled.Service.Meta.Version
			})
		}
		if len(f.known) != rounds {
			t.Errorf("the watcher knows %d services, want %d", len(f.known), rounds)
		}
		t.Logf("listed again %d times in %d", f.relists, 2*rounds)
		if f.relists > rounds {
			t.Error("watches hardly ever resume")
		}
	})
}

func TestWatchFromTooLongAgo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid(apid.Remember(4))
		w := a.watch(&musterv1.WatchRequest{})
		token := w.token
		w.cancel()
		for i := range 40 {
			a.create(webSpec(fmt.Sprint("web", i)))
		}
		_, err := a.tryWatch(&musterv1.WatchRequest{ResumeToken: token})
		wantCode(t, err, codes.OutOfRange)

		// A replica that has just started knows nothing of what was before, unless
		// nothing was.
		current := a.watch(&musterv1.WatchRequest{}).token
		b := c.apid()
		_, err = b.tryWatch(&musterv1.WatchRequest{ResumeToken: token})
		wantCode(t, err, codes.OutOfRange)
		resumed := b.watch(&musterv1.WatchRequest{ResumeToken: current})
		s := b.create(webSpec("new"))
		resumed.until("what is new", is(musterv1.WatchAction_CREATE, musterv1.ObjectKind_SERVICE, s.Id))
	})
}

// A watcher that does not read costs no memory: it finds changes joined, or is
// told that it was too slow.
func TestSlowWatcher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid(apid.Remember(64))
		slow := a.watch(&musterv1.WatchRequest{})
		quick := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_SERVICE}})
		spec := webSpec("big")
		// Large objects fill what gRPC sends ahead.
		spec.Task.GetContainer().Args = []string{strings.Repeat("x", 20<<10)}
		s := a.create(spec)
		last := uint64(300)
		read := make(chan struct{})
		go func() {
			// One that reads is not held up by the one that does not.
			defer close(read)
			quick.until("the last change", func(e *musterv1.WatchEvent) bool { return e.GetService().GetStatus().GetDesiredTasks() == last })
		}()
		for i := range last {
			if _, err := a.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: s.Id, Replicas: i + 1}); err != nil {
				t.Fatal(err)
			}
		}
		<-read
		var err error
		events := 0
		for err == nil {
			var m *musterv1.WatchResponse
			if m, err = slow.stream.Recv(); err == nil {
				events += len(m.Events)
				if slices.ContainsFunc(m.Events, func(e *musterv1.WatchEvent) bool { return e.GetService().GetStatus().GetDesiredTasks() == last }) {
					if events > int(last)/2 {
						t.Errorf("the slow watcher was sent %d events for %d changes, want few", events, last)
					}
					return
				}
			}
		}
		wantCode(t, err, codes.OutOfRange)
	})
}

func TestWatchEndsWithItsReplica(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		w := a.watch(&musterv1.WatchRequest{})
		a.stop()
		_, err := w.stream.Recv()
		wantCode(t, err, codes.Unavailable)
	})
}

func TestWatchKeepsItsTokenFresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		w := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_CLUSTER}})
		first := w.token
		a.create(webSpec("web"))
		m, err := w.stream.Recv()
		if err != nil || len(m.Events) != 0 || m.ResumeToken == first {
			t.Errorf("bookmark: %v, %v", m, err)
		}
	})
}

func FuzzResumeToken(f *testing.F) {
	c := newCluster(f)
	a := c.apid()
	f.Add(a.watch(&musterv1.WatchRequest{}).token)
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, token string) {
		a := &api{ControlServiceClient: a.ControlServiceClient, t: t}
		w, err := a.tryWatch(&musterv1.WatchRequest{ResumeToken: strings.ToValidUTF8(token, "")})
		if err != nil {
			wantCode(t, err, codes.InvalidArgument, "resumeToken")
			return
		}
		w.cancel()
	})
}

// Changes of one object arrive in their order whatever replica is asked.
func TestWatchOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := a.create(webSpec("web"))
		id := c.task(s, 1, nil)
		w := a.watch(&musterv1.WatchRequest{Kinds: []musterv1.ObjectKind{musterv1.ObjectKind_TASK}})
		states := []musterv1.TaskState{musterv1.TaskState_ACCEPTED, musterv1.TaskState_PREPARING, musterv1.TaskState_READY, musterv1.TaskState_STARTING, musterv1.TaskState_RUNNING, musterv1.TaskState_FAILED}
		for _, st := range states {
			c.assign(s, 1, id, "n1", &recordv1.Status{State: st, At: int64(st)})
		}
		var version uint64
		var state musterv1.TaskState
		w.until("the end", func(e *musterv1.WatchEvent) bool {
			task := e.GetTask()
			if task.Meta.Version < version || task.Status.State < state {
				t.Errorf("task goes back: %v", task)
			}
			version, state = task.Meta.Version, task.Status.State
			return state == musterv1.TaskState_FAILED
		})
	})
}
