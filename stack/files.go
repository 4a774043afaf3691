package stack

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/defaults"
)

const (
	defaultDriver = defaults.NetworkDriver

	// digestLength is how much of a digest is part of the name of a config or secret.
	digestLength = 8
	// longestName is the greatest length of a name without a digest.
	longestName = 64 - 1 - digestLength
	// keyLength is the length of the key of digests.
	keyLength = 32
)

func newDigestKey() []byte {
	key := make([]byte, keyLength)
	// Read never fails since Go 1.24.
	_, _ = rand.Read(key)
	return key
}

// digest returns a digest of data and of what is made of it. With a key it reveals nothing
// to those who lack it.
func digest(key []byte, name string, data []byte, drivers ...*musterv1.Driver) (string, error) {
	parts := [][]byte{[]byte(name), data}
	for _, d := range drivers {
		encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
		if err != nil {
			return "", fmt.Errorf("encode driver of %q: %w", name, err)
		}
		parts = append(parts, encoded)
	}
	h := hmac.New(sha256.New, key)
	for _, part := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// versionName is the name of the object that replaces one with other data.
func versionName(name, digest string) string {
	return name[:min(len(name), longestName)] + "-" + digest[:digestLength]
}

// isVersion reports whether an object has the name of a config or secret of the spec, or of
// another version of it.
func isVersion(object, name string) bool {
	if object == name {
		return true
	}
	suffix, ok := strings.CutPrefix(object, name[:min(len(name), longestName)]+"-")
	if !ok || len(suffix) != digestLength {
		return false
	}
	_, err := hex.DecodeString(suffix)
	return err == nil
}

// planConfig returns what to do for a config, and the former versions of it to remove.
func (p *planned) planConfig(have *objects, spec *musterv1.ConfigSpec) (Change, []Change, error) {
	sum := sha256.Sum256(spec.Data)
	c := Change{Action: ActionCreate, Kind: "config", Name: spec.Name}
	var former []Change
	for _, o := range have.configs {
		name := o.Spec.GetName()
		switch {
		case !isVersion(name, spec.Name) || p.named(spec.Name, name):
		case o.Digest == hex.EncodeToString(sum[:]) && proto.Equal(o.Spec.GetTemplating(), spec.Templating) && c.Action == ActionCreate:
			c.keep(o.Id, name, o.Meta.GetVersion(), o.Spec.GetLabels(), spec.Labels, &musterv1.ConfigSpec{Labels: spec.Labels})
		default:
			former = append(former, Change{Action: ActionRemove, Kind: "config", Name: name, id: o.Id, ifUnused: true})
		}
	}
	if c.Action != ActionCreate {
		return c, former, nil
	}
	next := proto.CloneOf(spec)
	if len(former) > 0 {
		d, err := digest(nil, spec.Name, spec.Data, spec.Templating)
		if err != nil {
			return c, nil, err
		}
		next.Name = versionName(spec.Name, d)
	}
	c.Name, c.spec = next.Name, next
	return c, former, nil
}

// planSecret does the same for a secret. It notes the digest of the data in the spec. A spec
// without data, from the history, takes the version with its digest, or else the newest.
func (p *planned) planSecret(have *objects, spec *musterv1.SecretSpec) (Change, []Change, error) {
	c := Change{Action: ActionCreate, Kind: "secret", Name: spec.Name}
	var versions []*musterv1.Secret
	for _, o := range have.secrets {
		if isVersion(o.Spec.GetName(), spec.Name) && !p.named(spec.Name, o.Spec.GetName()) {
			versions = append(versions, o)
		}
	}
	slices.SortFunc(versions, func(a, b *musterv1.Secret) int {
		return cmp.Or(b.Meta.GetCreatedAt().AsTime().Compare(a.Meta.GetCreatedAt().AsTime()), cmp.Compare(a.Id, b.Id))
	})
	given := len(spec.Data) > 0 || spec.Driver != nil
	if given {
		d, err := digest(p.spec.DigestKey, spec.Name, spec.Data, spec.Templating, spec.Driver)
		if err != nil {
			return c, nil, err
		}
		spec.Labels[DigestLabel] = d
	}
	at := slices.IndexFunc(versions, func(o *musterv1.Secret) bool {
		return o.Spec.GetLabels()[DigestLabel] == spec.Labels[DigestLabel]
	})
	if at < 0 && !given {
		if len(versions) == 0 {
			return c, nil, fmt.Errorf("secret %q does not exist, and its data is not kept with the stack: deploy from files that have it", spec.Name)
		}
		at, c.Note = 0, "the former data is not kept; the data stays as it is"
		spec.Labels[DigestLabel] = versions[0].Spec.GetLabels()[DigestLabel]
	}
	var former []Change
	for i, o := range versions {
		if i != at {
			former = append(former, Change{Action: ActionRemove, Kind: "secret", Name: o.Spec.GetName(), id: o.Id, ifUnused: true})
			continue
		}
		c.keep(o.Id, o.Spec.GetName(), o.Meta.GetVersion(), o.Spec.GetLabels(), spec.Labels, &musterv1.SecretSpec{Labels: spec.Labels})
	}
	if c.Action == ActionCreate {
		next := proto.CloneOf(spec)
		if len(former) > 0 {
			next.Name = versionName(spec.Name, spec.Labels[DigestLabel])
		}
		c.Name, c.spec = next.Name, next
	}
	return c, former, nil
}

// keep has an object stay, with other labels if they differ.
func (c *Change) keep(id, name string, version uint64, labels, want map[string]string, next proto.Message) {
	c.Action, c.id, c.Name, c.version = ActionKeep, id, name, version
	if !maps.Equal(labels, want) {
		c.Action, c.Fields, c.spec = ActionUpdate, []string{"labels"}, next
	}
}

// named reports whether an object that looks like a version of a config or secret is a
// config or secret of the spec itself.
func (p *planned) named(name, object string) bool {
	if name == object {
		return false
	}
	return slices.ContainsFunc(p.spec.Configs, func(s *musterv1.ConfigSpec) bool { return s.Name == object }) ||
		slices.ContainsFunc(p.spec.Secrets, func(s *musterv1.SecretSpec) bool { return s.Name == object })
}
