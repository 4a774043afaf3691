package control_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/apidtest"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// secretive returns a spec with values that must not show.
func secretive(name string) *musterv1.ServiceSpec {
	s := webSpec(name)
	c := s.Task.GetContainer()
	c.Env = []string{"PASSWORD=canary-1", "EMPTY=", "PLAIN"}
	c.PullOptions = &musterv1.PullOptions{RegistryAuth: "Y2FuYXJ5"}
	return s
}

// shown returns the task specs in the store in which a value shows.
func (f *fixture) shown() []string {
	var all []string
	for e := range f.Tables.Specs.Scan(f.Snapshot(), "") {
		if text := e.Value.String(); strings.Contains(text, "canary") || strings.Contains(text, "Y2FuYXJ5") {
			all = append(all, text)
		}
	}
	return all
}

// keyNames returns the names of the keys that seal task specs.
func (f *fixture) keyNames() []string {
	names := map[string]bool{}
	for e := range f.Tables.Specs.Scan(f.Snapshot(), "") {
		if e.Value.Envelope != nil {
			names[e.Value.Envelope.KeyName] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// TestValuesOfTaskSpecsLieSealed creates and changes services, and looks for their values in
// the store. Those who read the services see the environment.
func TestValuesOfTaskSpecsLieSealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		former, newest := newKey(t), newKey(t)
		keys := seal.NewKeyring(former, newest)
		f, sealer := startSealed(t, keys)
		f.update(func(tx *store.Tx) {
			f.Tables.NodeStates.Put(tx, "n1", &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
				Executors: []*musterv1.ExecutorDescription{{Name: "process", Kinds: []string{"process"}, Health: musterv1.ExecutorDescription_HEALTHY}},
			}})
		})
		web := f.create(secretive("web"))
		payload := apidtest.Must(structpb.NewStruct(map[string]any{"command": []any{"true"}, "env": []any{"PASSWORD=canary-2"}}))(t)
		job := f.create(&musterv1.ServiceSpec{Name: "job", Task: &musterv1.TaskSpec{
			Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "process", Payload: payload}},
		}})
		env := func() string { return strings.Join(f.get("web").Spec.Task.GetContainer().Env, " ") }
		check := func(want string) {
			t.Helper()
			if got := env(); got != want {
				t.Errorf("the environment is shown as %q, want %q", got, want)
			}
			if got := f.get(job.Id).Spec.Task.GetGeneric().Payload.Fields["env"].GetListValue().AsSlice(); len(got) != 1 || got[0] != "PASSWORD=canary-2" {
				t.Errorf("the environment of the process is shown as %v", got)
			}
			if all := f.shown(); len(all) > 0 {
				t.Errorf("values show in the store: %v", all)
			}
			record := f.record(web.Id)
			e, _ := f.Tables.Specs.Get(f.Snapshot(), state.SpecKey(record.TaskDigest))
			open, err := keys.OpenSpec(e.Key, e.Value)
			if err != nil || open.GetContainer().PullOptions.GetRegistryAuth() != "Y2FuYXJ5" {
				t.Errorf("what dispatchers open: %v, %v", open, err)
			}
		}
		const first, second = "PASSWORD=canary-1 EMPTY= PLAIN", "PASSWORD=canary-3 EMPTY= PLAIN"
		check(first)

		same := f.updated("web", func(s *musterv1.ServiceSpec) {})
		if same.Meta.Version != f.get("web").Meta.Version || same.SpecVersion != web.SpecVersion {
			t.Errorf("the same spec again made version %v of %v", same.SpecVersion, web.SpecVersion)
		}
		if got := f.updated("web", func(s *musterv1.ServiceSpec) { s.Labels = map[string]string{"a": "b"} }); got.SpecVersion != web.SpecVersion {
			t.Error("a label replaces tasks")
		}
		if got := f.updated("web", func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Env[0] = "PASSWORD=canary-3" }); got.SpecVersion == web.SpecVersion {
			t.Error("another value does not replace tasks")
		}
		check(second)
		if _, err := f.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"}); err != nil {
			t.Fatal(err)
		}
		check(first)

		if err := sealer.Reseal(t.Context(), newest.Name()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if names := f.keyNames(); len(names) != 1 || names[0] != newest.Name() {
			t.Errorf("after the reseal keys %v seal, want %s", names, newest.Name())
		}
		if counts := sealer.Count(); counts[newest.Name()] == 0 || len(counts) != 1 {
			t.Errorf("after the reseal the keys seal %v", counts)
		}
		check(first)
		f.create(secretive("after"))
		check(first)
		if counts := sealer.Count(); len(counts) != 1 {
			t.Errorf("what was created after the reseal: %v", counts)
		}
	})
}

// oneDispatcher finds one dispatcher.
type oneDispatcher struct {
	keys  []string
	opens *bool
}

func (d oneDispatcher) Look(context.Context) clusterstatus.Findings {
	m := shards.Member{Instance: "d1", Daemon: "dispatcherd", Address: "127.0.0.1:1"}
	return clusterstatus.Findings{
		Ownership: map[string]shards.Ownership{"dispatcher": {Members: []shards.Member{m}}},
		Reports:   map[string]clusterstatus.Report{"d1": {ReportResponse: &daemonv1.ReportResponse{Keys: d.keys, OpensSpecs: *d.opens}}},
	}
}

// TestValuesAreSealedOnceAllDaemonsOpenThem has a dispatcher of a former version, which is
// replaced. What was stored before stays as it is while it is not changed.
func TestValuesAreSealedOnceAllDaemonsOpenThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		key, opens := newKey(t), false
		f, _ := startFound(t, seal.NewKeyring(key), oneDispatcher{keys: []string{key.Name()}, opens: &opens})
		old := f.create(secretive("old"))
		if len(f.shown()) != 1 || len(f.keyNames()) > 0 {
			t.Fatalf("sealed although a dispatcher cannot open it: %v", f.shown())
		}
		opens = true
		<-time.After(time.Minute)
		f.create(secretive("new"))
		if len(f.shown()) != 1 || len(f.keyNames()) != 1 {
			t.Errorf("after all daemons can open them: %v, %v", f.shown(), f.keyNames())
		}
		if got := f.updated("old", func(s *musterv1.ServiceSpec) { s.Labels = map[string]string{"a": "b"} }); got.SpecVersion != old.SpecVersion {
			t.Error("a label replaces tasks")
		}
		if got := f.updated("old", func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "nginx:2" }); got.SpecVersion == old.SpecVersion {
			t.Error("another image does not replace tasks")
		}
		if got := f.get("old").Spec.Task.GetContainer().Env; len(got) != 3 || got[0] != "PASSWORD=canary-1" {
			t.Errorf("the environment is shown as %v", got)
		}
		record := f.record(old.Id)
		if e, _ := f.Tables.Specs.Get(f.Snapshot(), state.SpecKey(record.TaskDigest)); e.Value.Envelope == nil {
			t.Error("the changed spec is not sealed")
		}
	})
}

// TestResealSealsLargeSpecsToo has more task specs than one transaction can seal again.
func TestResealSealsLargeSpecsToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		former, newest := newKey(t), newKey(t)
		f, sealer := startSealed(t, seal.NewKeyring(former, newest))
		const services, variables = 80, 60
		for i := range services {
			s := webSpec(fmt.Sprintf("web-%d", i))
			for n := range variables {
				s.Task.GetContainer().Env = append(s.Task.GetContainer().Env, fmt.Sprintf("VARIABLE_%d=%d%s", n, i, strings.Repeat("x", 60)))
			}
			f.create(s)
		}
		if err := sealer.Reseal(t.Context(), newest.Name()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if names := f.keyNames(); len(names) != 1 || names[0] != newest.Name() {
			t.Errorf("after the reseal keys %v seal, want %s", names, newest.Name())
		}
	})
}

// TestSpecThatCannotBeOpenedIsNotTakenForAnEmptyOne reads, changes and removes a service whose
// values are sealed with a key that apid lacks.
func TestSpecThatCannotBeOpenedIsNotTakenForAnEmptyOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		web := f.create(secretive("web"))
		f.update(func(tx *store.Tx) {
			for e := range f.Tables.Specs.Scan(tx, "") {
				next := proto.CloneOf(e.Value)
				next.Envelope.KeyName = "another"
				f.Tables.Specs.Put(tx, e.Key, next)
			}
		})
		_, err := f.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "web"})
		wantCode(t, err, codes.FailedPrecondition)
		_, err = f.ListServices(t.Context(), &musterv1.ListServicesRequest{})
		wantCode(t, err, codes.FailedPrecondition)
		next := secretive("web")
		next.Task.GetContainer().Image = "nginx:2"
		_, err = f.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: web.Id, Version: web.Meta.Version, Spec: next})
		wantCode(t, err, codes.FailedPrecondition)
		if _, err := f.RemoveService(t.Context(), &musterv1.RemoveServiceRequest{Service: "web"}); err != nil {
			t.Error(err)
		}
	})
}

// TestStandInIsRefusedAsValue submits what an apid of a former version would have shown.
func TestStandInIsRefusedAsValue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		f.create(secretive("web"))
		for e := range f.Tables.Specs.Scan(f.Snapshot(), "") {
			_, err := f.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: &musterv1.ServiceSpec{Name: "copy", Task: e.Value.Task}})
			wantCode(t, err, codes.InvalidArgument, "spec.task.container.env[0]")
		}
	})
}
