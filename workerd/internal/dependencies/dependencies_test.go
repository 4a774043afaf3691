package dependencies_test

import (
	"testing"

	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/internal/dependencies"
)

func configRef(id string) *dispatcherv1.ObjectRef {
	return &dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Config{Config: id}}
}

func task(digest string, configs ...string) *dispatcherv1.AssignedTask {
	t := &dispatcherv1.AssignedTask{Id: "t", SpecDigest: []byte(digest)}
	for _, id := range configs {
		t.Dependencies = append(t.Dependencies, configRef(id))
	}
	return t
}

func refs(t testing.TB, task *dispatcherv1.AssignedTask) []dependencies.Ref {
	t.Helper()
	all, err := dependencies.RefsOf(task)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func putConfig(s *dependencies.Store, id, data string) {
	s.Put(&dispatcherv1.AssignedObject{Object: &dispatcherv1.AssignedObject_Config{
		Config: &dispatcherv1.AssignedConfig{Id: id, Data: []byte(data)},
	}})
}

func TestWithdrawnObjectStaysWhileATaskHoldsIt(t *testing.T) {
	t.Parallel()
	s := dependencies.New(noNetworks{})
	s.PutSpec([]byte("d"), &musterv1.TaskSpec{})
	putConfig(s, "c", "1")
	held := refs(t, task("d", "c"))
	if err := s.Hold(held); err != nil {
		t.Fatal(err)
	}
	s.Withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Spec{Spec: []byte("d")}})
	s.Withdraw(configRef("c"))
	if s.Spec([]byte("d")) == nil || s.Data(dependencies.ConfigRef("c"), "") == nil {
		t.Fatal("a held object was dropped")
	}
	s.Release(held)
	if s.Spec([]byte("d")) != nil || s.Data(dependencies.ConfigRef("c"), "") != nil {
		t.Fatal("an object stays that nothing needs")
	}
}

func TestHoldNamesTheMissingObjectAndHoldsNone(t *testing.T) {
	t.Parallel()
	s := dependencies.New(noNetworks{})
	s.PutSpec([]byte("d"), &musterv1.TaskSpec{})
	err := s.Hold(refs(t, task("d", "c")))
	if err == nil || err.Error() != "config c was not sent" {
		t.Errorf("Hold = %v, want that config c was not sent", err)
	}
	s.Withdraw(&dispatcherv1.ObjectRef{Ref: &dispatcherv1.ObjectRef_Spec{Spec: []byte("d")}})
	if s.Spec([]byte("d")) != nil {
		t.Error("a failed Hold still holds the spec")
	}
}

func TestUnknownKindIsAnError(t *testing.T) {
	t.Parallel()
	bad := task("d")
	bad.Dependencies = []*dispatcherv1.ObjectRef{{}}
	if _, err := dependencies.RefsOf(bad); err == nil {
		t.Error("RefsOf accepts a dependency of an unknown kind")
	}
}

func TestNewSessionDropsWhatIsNeitherHeldNorSentAgain(t *testing.T) {
	t.Parallel()
	s := dependencies.New(noNetworks{})
	for _, digest := range []string{"held", "sent", "old"} {
		s.PutSpec([]byte(digest), &musterv1.TaskSpec{})
	}
	if err := s.Hold(refs(t, task("held"))); err != nil {
		t.Fatal(err)
	}
	specs, dropped := s.Begin()
	if !dropped || len(specs) != 1 || !specs["held"] {
		t.Errorf("Begin = %v, %v, want the held spec, and that others were dropped", specs, dropped)
	}
	if _, dropped := s.Begin(); dropped {
		t.Error("Begin says twice that specs were dropped")
	}
}

func TestNewerObjectReplacesOlder(t *testing.T) {
	t.Parallel()
	s := dependencies.New(noNetworks{})
	putConfig(s, "c", "1")
	putConfig(s, "c", "2")
	if got := string(s.Data(dependencies.ConfigRef("c"), "").GetData()); got != "2" {
		t.Errorf("config has data %q, want the newest", got)
	}
}

// However objects are sent, withdrawn, held and released, exactly those are there
// that are wanted or held.
func TestExactlyWhatIsNeededStays(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := dependencies.New(noNetworks{})
		ids := []string{"a", "b", "c"}
		wanted, holds := map[string]bool{}, map[string]int{}
		id := func() string { return rapid.SampledFrom(ids).Draw(t, "id") }
		refOf := func(id string) []dependencies.Ref {
			ref, _ := dependencies.RefOf(configRef(id))
			return []dependencies.Ref{ref}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(*rapid.T) {
				id := id()
				putConfig(s, id, "x")
				wanted[id] = true
			},
			"withdraw": func(*rapid.T) {
				id := id()
				s.Withdraw(configRef(id))
				delete(wanted, id)
			},
			"begin": func(*rapid.T) {
				s.Begin()
				clear(wanted)
			},
			"hold": func(t *rapid.T) {
				id := id()
				there := wanted[id] || holds[id] > 0
				if err := s.Hold(refOf(id)); (err == nil) != there {
					t.Fatalf("Hold(%s) = %v, want success: %v", id, err, there)
				} else if err == nil {
					holds[id]++
				}
			},
			"release": func(t *rapid.T) {
				id := id()
				if holds[id] == 0 {
					t.Skip("not held")
				}
				s.Release(refOf(id))
				holds[id]--
			},
			"": func(t *rapid.T) {
				for _, id := range ids {
					if got, want := s.Data(dependencies.ConfigRef(id), "") != nil, wanted[id] || holds[id] > 0; got != want {
						t.Fatalf("%s is there: %v, want %v", id, got, want)
					}
				}
			},
		})
	})
}
