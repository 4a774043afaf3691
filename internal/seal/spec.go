package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// SpecUse returns what the values of a task spec are sealed for, so that they open as those
// of no other spec. Id is the key of its record.
func SpecUse(id string) string { return "muster.record.v1.SpecValues " + id }

// StandInUse is what the key of stand-ins is sealed for.
const StandInUse = "muster.record.v1.Sealing stand_in_key"

// runtime is the main runtime of a task, or one of its group.
type runtime interface {
	GetContainer() *musterv1.ContainerSpec
	GetGeneric() *musterv1.GenericRuntime
}

func runtimes(t *musterv1.TaskSpec) []runtime {
	all := []runtime{t}
	for _, g := range t.GetGroup() {
		all = append(all, g)
	}
	return all
}

// HasValues reports whether there is something to hide in a task spec.
func HasValues(t *musterv1.TaskSpec) bool { return values(t) != nil }

// values returns what is secret in a task spec: the environment of containers and processes,
// and credentials for registries. It returns nil if that is nothing.
func values(t *musterv1.TaskSpec) *recordv1.SpecValues {
	all, some := &recordv1.SpecValues{}, false
	for _, r := range runtimes(t) {
		c := r.GetContainer()
		v := &recordv1.RuntimeValues{Env: c.GetEnv(), RegistryAuth: c.GetPullOptions().GetRegistryAuth()}
		if list := processEnv(r); list != nil {
			for _, e := range list.Values {
				v.Env = append(v.Env, e.GetStringValue())
			}
		}
		some = some || len(v.Env) > 0 || v.RegistryAuth != ""
		all.Runtimes = append(all.Runtimes, v)
	}
	if !some {
		return nil
	}
	return all
}

// processEnv returns the environment of a process: the list of "KEY=value" in its payload;
// nil if it has none. Other payloads are the matter of their executors, whose schemas they
// are checked against when a node is chosen.
func processEnv(r runtime) *structpb.ListValue {
	g := r.GetGeneric()
	if g.GetKind() != "process" {
		return nil
	}
	list := g.GetPayload().GetFields()["env"].GetListValue()
	for _, e := range list.GetValues() {
		if _, text := e.GetKind().(*structpb.Value_StringValue); !text {
			return nil
		}
	}
	return list
}

// Hide returns a task spec with stand-ins in the places of secret values, and these values.
// Those are nil, and the spec the same, if it has none. Equal values of two specs have
// equal stand-ins, so that specs can be compared by them. That is all that they tell to
// those who do not have the key.
func (k *Key) Hide(t *musterv1.TaskSpec) (*musterv1.TaskSpec, *recordv1.SpecValues, error) {
	all := values(t)
	if all == nil {
		return t, nil, nil
	}
	// All values of a sort have one stand-in, for one by itself could be guessed.
	env, err := k.standIn("env", all, func(v, of *recordv1.RuntimeValues) { v.Env = of.Env })
	if err != nil {
		return nil, nil, err
	}
	auth, err := k.standIn("registry_auth", all, func(v, of *recordv1.RuntimeValues) { v.RegistryAuth = of.RegistryAuth })
	if err != nil {
		return nil, nil, err
	}
	hidden := proto.CloneOf(t)
	// The first one is enough to compare specs by.
	next := func() string {
		standIn := env
		env = sealed
		return standIn
	}
	for _, r := range runtimes(hidden) {
		if c := r.GetContainer(); c != nil {
			for i, e := range c.Env {
				c.Env[i] = standFor(e, next)
			}
			if c.GetPullOptions().GetRegistryAuth() != "" {
				c.PullOptions.RegistryAuth = auth
			}
		}
		for _, e := range processEnv(r).GetValues() {
			e.Kind = &structpb.Value_StringValue{StringValue: standFor(e.GetStringValue(), next)}
		}
	}
	return hidden, all, nil
}

// standFor returns a variable with a stand-in for its value.
func standFor(variable string, standIn func() string) string {
	name, _, ok := strings.Cut(variable, "=")
	if !ok {
		return variable
	}
	return name + "=" + standIn()
}

// standIn returns what stands for the values of a sort.
func (k *Key) standIn(sort string, all *recordv1.SpecValues, pick func(v, of *recordv1.RuntimeValues)) (string, error) {
	picked := &recordv1.SpecValues{}
	for _, of := range all.Runtimes {
		v := &recordv1.RuntimeValues{}
		pick(v, of)
		picked.Runtimes = append(picked.Runtimes, v)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(picked)
	if err != nil {
		return "", fmt.Errorf("encode values of task spec: %w", err)
	}
	h := hmac.New(sha256.New, k[:])
	// Writes to a hash never fail.
	_, _ = h.Write([]byte(sort + "\x00"))
	_, _ = h.Write(b)
	return sealed + ":" + base64.RawStdEncoding.EncodeToString(h.Sum(nil)[:standInBytes]), nil
}

const (
	sealed       = "sealed"
	standInBytes = 16
)

// IsStandIn reports whether a value looks like one that stands for others. A daemon of a
// former version shows them as values.
func IsStandIn(value string) bool {
	digest, ok := strings.CutPrefix(value, sealed+":")
	b, err := base64.RawStdEncoding.DecodeString(digest)
	return ok && err == nil && len(b) == standInBytes
}

// EnvelopSpec returns the record, with key id, of a task spec whose values are hidden, with
// these values sealed.
func (k *Key) EnvelopSpec(id string, hidden *musterv1.TaskSpec, all *recordv1.SpecValues) (*recordv1.Spec, error) {
	b, err := proto.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode values of task spec: %w", err)
	}
	e, data, err := k.Envelop(SpecUse(id), b)
	if err != nil {
		return nil, err
	}
	return &recordv1.Spec{Task: hidden, Envelope: e, Values: data}, nil
}

// OpenSpec returns the task spec of the record with key id, with all values. It is the
// record's own, and not to be changed, if no values are sealed. The keyring may be nil then.
func (r *Keyring) OpenSpec(id string, record *recordv1.Spec) (*musterv1.TaskSpec, error) {
	if record.GetEnvelope() == nil {
		return record.GetTask(), nil
	}
	fail := func(err error) (*musterv1.TaskSpec, error) {
		return nil, fmt.Errorf("open values of task spec %s: %w", id, err)
	}
	b, err := r.Open(record.Envelope, SpecUse(id), record.Values)
	if err != nil {
		return fail(err)
	}
	all := &recordv1.SpecValues{}
	if err := proto.Unmarshal(b, all); err != nil {
		return fail(err)
	}
	t := proto.CloneOf(record.Task)
	parts := runtimes(t)
	if len(parts) != len(all.Runtimes) {
		return fail(fmt.Errorf("values of %d runtimes, want %d", len(all.Runtimes), len(parts)))
	}
	for i, v := range all.Runtimes {
		if c := parts[i].GetContainer(); c != nil {
			c.Env = v.Env
			if v.RegistryAuth != "" && c.PullOptions != nil {
				c.PullOptions.RegistryAuth = v.RegistryAuth
			}
		}
		for at, e := range processEnv(parts[i]).GetValues() {
			if at < len(v.Env) {
				e.Kind = &structpb.Value_StringValue{StringValue: v.Env[at]}
			}
		}
	}
	return t, nil
}
