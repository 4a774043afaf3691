package seal_test

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/seal"
)

const hidden = "canary"

// drawEnv draws an environment, whose values hold the canary.
func drawEnv(t *rapid.T) []string {
	var env []string
	for range rapid.IntRange(0, 3).Draw(t, "variables") {
		name := rapid.SampledFrom([]string{"A", "PATH", "ß"}).Draw(t, "name")
		switch rapid.IntRange(0, 3).Draw(t, "form") {
		case 0:
			env = append(env, name)
		case 1:
			env = append(env, name+"=")
		default:
			env = append(env, name+"="+hidden+rapid.SampledFrom([]string{"", "=1", "2"}).Draw(t, "value"))
		}
	}
	return env
}

func drawContainer(t *rapid.T) *musterv1.ContainerSpec {
	c := &musterv1.ContainerSpec{Image: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "image"), Env: drawEnv(t)}
	if rapid.Bool().Draw(t, "pulls") {
		c.PullOptions = &musterv1.PullOptions{RegistryAuth: rapid.SampledFrom([]string{"", hidden, hidden + "x"}).Draw(t, "credentials")}
	}
	return c
}

func drawProcess(t *rapid.T) *musterv1.GenericRuntime {
	g := &musterv1.GenericRuntime{Kind: "process"}
	if rapid.Bool().Draw(t, "with a payload") {
		env := []any{}
		for _, e := range drawEnv(t) {
			env = append(env, e)
		}
		g.Payload, _ = structpb.NewStruct(map[string]any{"command": []any{"true"}, "env": env})
	}
	return g
}

func drawTask(t *rapid.T) *musterv1.TaskSpec {
	if rapid.Bool().Draw(t, "a process") {
		return &musterv1.TaskSpec{
			Runtime: &musterv1.TaskSpec_Generic{Generic: drawProcess(t)},
			Group:   []*musterv1.GroupContainer{{Name: "beside", Runtime: &musterv1.GroupContainer_Generic{Generic: drawProcess(t)}}},
		}
	}
	return &musterv1.TaskSpec{
		Runtime: &musterv1.TaskSpec_Container{Container: drawContainer(t)},
		Group:   []*musterv1.GroupContainer{{Name: "beside", Runtime: &musterv1.GroupContainer_Container{Container: drawContainer(t)}}},
	}
}

func encoded(t *rapid.T, m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSpecsAreHiddenAndOpened stores two task specs with sealed values. No value shows, each
// opens as it was, and the specs without their values are equal where the specs are.
func TestSpecsAreHiddenAndOpened(t *testing.T) {
	cluster, standIns := newKey(t), seal.NewKey()
	rapid.Check(t, func(t *rapid.T) {
		var specs, stored [2]*musterv1.TaskSpec
		for i := range specs {
			specs[i] = drawTask(t)
			before := proto.CloneOf(specs[i])
			task, values, err := standIns.Hide(specs[i])
			if err != nil {
				t.Fatal(err)
			}
			stored[i] = task
			if !proto.Equal(before, specs[i]) {
				t.Fatal("the spec was changed")
			}
			if strings.Contains(string(encoded(t, task)), hidden) {
				t.Fatalf("a value shows: %v", task)
			}
			if values == nil {
				if task != specs[i] {
					t.Fatal("a spec without values was copied")
				}
				continue
			}
			record, err := cluster.EnvelopSpec("id", task, values)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(encoded(t, record), []byte(hidden)) {
				t.Fatal("a value shows in the record")
			}
			open, err := seal.NewKeyring(cluster).OpenSpec("id", record)
			if err != nil || !proto.Equal(open, specs[i]) {
				t.Fatalf("opened: %v, %v, want %v", open, err, specs[i])
			}
			for id, ring := range map[string]*seal.Keyring{"other": seal.NewKeyring(cluster), "id": seal.NewKeyring(seal.NewKey())} {
				if _, err := ring.OpenSpec(id, record); err == nil {
					t.Fatal("it opens as another spec, or with another key")
				}
			}
			if other, _, _ := seal.NewKey().Hide(specs[i]); !bytes.Equal(encoded(t, other), encoded(t, task)) {
				continue
			}
			for _, r := range append(task.GetContainer().GetEnv(), task.Group[0].GetContainer().GetEnv()...) {
				if _, value, _ := strings.Cut(r, "="); value != "" {
					t.Fatalf("the stand-in of %s does not depend on the key", r)
				}
			}
		}
		if proto.Equal(specs[0], specs[1]) != proto.Equal(stored[0], stored[1]) {
			t.Fatalf("%v and %v are stored as %v and %v", specs[0], specs[1], stored[0], stored[1])
		}
	})
}

// TestSpecWithoutSealedValuesNeedsNoKey opens what was stored before values were sealed.
func TestSpecWithoutSealedValuesNeedsNoKey(t *testing.T) {
	spec := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{Env: []string{"A=" + hidden}}}}
	if got, err := (*seal.Keyring)(nil).OpenSpec("id", &recordv1.Spec{Task: spec}); err != nil || !proto.Equal(got, spec) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := (*seal.Keyring)(nil).OpenSpec("id", &recordv1.Spec{Task: spec, Envelope: &recordv1.Envelope{KeyName: "x"}}); err == nil {
		t.Error("sealed values open without keys")
	}
}
