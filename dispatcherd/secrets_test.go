package dispatcherd

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

func newKey(t *testing.T) *seal.Key {
	t.Helper()
	key, err := seal.MakeKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// secret writes a secret as apid does.
func (c *cluster) secret(id string, key *seal.Key, data string) {
	c.t.Helper()
	envelope, sealed, err := key.Envelop(seal.SecretUse(id), []byte(data))
	if err != nil {
		c.t.Fatal(err)
	}
	digest := state.BlobDigest(sealed)
	c.update(func(tx *store.Tx) {
		c.tables.SealedBlobs.Put(tx, state.BlobKey(digest), &recordv1.Blob{Size: uint64(len(sealed))})
		c.tables.SealedBlobs.Put(tx, state.ChunkKey(digest, 0), &recordv1.Blob{Data: sealed})
		c.tables.Secrets.Put(tx, id, &recordv1.Secret{
			Spec: &musterv1.SecretSpec{Name: "name-of-" + id}, Envelope: envelope, Digest: digest, Size: uint64(len(sealed)),
		})
	})
}

// serviceWithSecret makes a service whose task spec refers to a secret.
func (c *cluster) serviceWithSecret(id, secret string) {
	c.service(id)
	c.update(func(tx *store.Tx) {
		spec := &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
			Secrets: []*musterv1.SecretReference{{SecretId: secret, SecretName: "name-of-" + secret}},
		}}}
		c.tables.Specs.Put(tx, state.SpecKey([]byte("digest-of-"+id)), &recordv1.Spec{Task: spec})
	})
}

// secretsSent is the data of secrets that a worker was sent, in order.
func secretsSent(w *worker) string {
	return get(w, func(w *worker) string {
		var all []string
		for _, m := range w.messages {
			for _, o := range m.Objects {
				if s := o.GetSecret(); s != nil {
					all = append(all, s.Name+"="+string(s.Data))
				}
			}
		}
		return strings.Join(all, " ")
	})
}

// TestSecretsAreOpenedForTheirNodesOnly has a node with a task that needs a secret, and one
// without. A rotation is sent; another cluster key is not.
func TestSecretsAreOpenedForTheirNodesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newKey(t), newKey(t)
		keys := seal.NewKeyring(before, after)
		c := newCluster(t, false)
		d := c.dispatcher("d1", func(cfg *Config) { cfg.Keys = keys })
		if names := d.ClusterKeys(); len(names) != 2 || names[0] != before.Name() {
			t.Errorf("it reports the keys %q", names)
		}
		c.secret("x", before, "one")
		c.serviceWithSecret("s1", "x")
		c.service("s2")
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s1", "t1", 1)
			c.assign(tx, "n2", "s2", "t2", 1)
		})
		w1, w2 := c.worker("n1", d.address), c.worker("n2", d.address)
		want := func(when, data string) {
			t.Helper()
			if got := secretsSent(w1); got != data {
				t.Errorf("%s: n1 was sent %q, want %q", when, got, data)
			}
			if got := secretsSent(w2); got != "" {
				t.Errorf("%s: n2 was sent %q", when, got)
			}
		}
		want("at the start", "name-of-x=one")
		c.update(func(tx *store.Tx) {
			e, _ := c.tables.Secrets.Get(tx, "x")
			envelope, err := keys.Rewrap(e.Value.Envelope, seal.SecretUse("x"), after)
			if err != nil {
				t.Fatal(err)
			}
			c.tables.Secrets.Put(tx, "x", &recordv1.Secret{Spec: e.Value.Spec, Envelope: envelope, Digest: e.Value.Digest, Size: e.Value.Size})
		})
		want("after a reseal", "name-of-x=one")
		c.secret("x", after, "two")
		want("after a rotation", "name-of-x=one name-of-x=two")
	})
}

func TestTaskWaitsForASecretThatDoesNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false)
		d := c.dispatcher("d1")
		c.secret("x", newKey(t), "one")
		c.serviceWithSecret("s1", "x")
		c.service("s2")
		c.update(func(tx *store.Tx) {
			c.assign(tx, "n1", "s1", "t1", 1)
			c.assign(tx, "n1", "s2", "t2", 1)
		})
		w := c.worker("n1", d.address)
		w.live(d.cfg.SettleTimeout * 2)
		if tasks := w.tasks(); len(tasks) != 1 || tasks["t2"] != musterv1.TaskState_RUNNING {
			t.Errorf("tasks are %v, want t2 alone", tasks)
		}
		if got := secretsSent(w); got != "" {
			t.Errorf("it was sent %q", got)
		}
	})
}
