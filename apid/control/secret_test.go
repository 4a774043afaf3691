package control_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/apidtest"
	"github.com/musterhq/muster/apid/sealing"
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

func secretSpec(name string, data []byte) *musterv1.SecretSpec {
	return &musterv1.SecretSpec{Name: name, Data: data, Labels: map[string]string{"team": "web"}}
}

func (f *fixture) createSecret(spec *musterv1.SecretSpec) *musterv1.Secret {
	f.t.Helper()
	return apidtest.Must(f.CreateSecret(f.t.Context(), &musterv1.CreateSecretRequest{Spec: spec}))(f.t).Secret
}

// open returns the data of a secret as a dispatcher with some keys opens it.
func (f *fixture) open(keys *seal.Keyring, id string) ([]byte, error) {
	e, ok := f.Tables.Secrets.Get(f.Snapshot(), id)
	if !ok {
		return nil, fmt.Errorf("no record of secret %s", id)
	}
	sealed, err := f.Tables.ReadSealed(f.Snapshot(), e.Value.Digest)
	if err != nil {
		return nil, err
	}
	return keys.OpenSecret(id, e.Value, sealed)
}

func TestSecretUpdateChangesLabelsOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startSealed(t, seal.NewKeyring(newKey(t)))
		created := f.createSecret(secretSpec("app", []byte("data")))
		update := func(version uint64, spec *musterv1.SecretSpec) (*musterv1.Secret, error) {
			resp, err := f.UpdateSecret(t.Context(), &musterv1.UpdateSecretRequest{Secret: "app", Version: version, Spec: spec})
			return resp.GetSecret(), err
		}
		labels := map[string]string{"tier": "front"}
		updated, err := update(created.Meta.Version, &musterv1.SecretSpec{Name: "app", Labels: labels})
		if err != nil || updated.Spec.Labels["tier"] != "front" || len(updated.Spec.Labels) != 1 || updated.Meta.Version <= created.Meta.Version {
			t.Fatalf("update: %v, %v", updated, err)
		}
		if !updated.RotatedAt.AsTime().Equal(created.RotatedAt.AsTime()) {
			t.Errorf("labels count as a rotation: %v", updated)
		}
		// What get returned can be sent back.
		if same, err := update(updated.Meta.Version, updated.Spec); err != nil || same.Meta.Version != updated.Meta.Version {
			t.Errorf("the same spec again: %v, %v", same, err)
		}
		_, err = update(created.Meta.Version, &musterv1.SecretSpec{Labels: labels})
		wantCode(t, err, codes.Aborted)
		_, err = update(0, &musterv1.SecretSpec{Labels: labels})
		wantCode(t, err, codes.InvalidArgument, "version")
		// Clients that deploy a stack again send the data, too.
		if same, err := update(updated.Meta.Version, &musterv1.SecretSpec{Name: "app", Labels: labels, Data: []byte("data")}); err != nil || same.Meta.Version != updated.Meta.Version {
			t.Errorf("the same data again: %v, %v", same, err)
		}
		_, err = update(updated.Meta.Version, &musterv1.SecretSpec{Name: "App", Data: []byte("other")})
		wantCode(t, err, codes.InvalidArgument, "spec.name", "spec.data")
	})
}

func TestSecretSpecIsChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spec   *musterv1.SecretSpec
		code   codes.Code
		fields []string
	}{
		"no spec":       {nil, codes.InvalidArgument, []string{"spec"}},
		"nothing":       {&musterv1.SecretSpec{}, codes.InvalidArgument, []string{"spec.name", "spec.data"}},
		"name":          {secretSpec("a/b", []byte("x")), codes.InvalidArgument, []string{"spec.name"}},
		"long name":     {secretSpec(strings.Repeat("a", 65), []byte("x")), codes.InvalidArgument, []string{"spec.name"}},
		"too much data": {secretSpec("a", make([]byte, 500<<10+1)), codes.InvalidArgument, []string{"spec.data"}},
		"label":         {&musterv1.SecretSpec{Name: "a", Data: []byte("x"), Labels: map[string]string{"": "x"}}, codes.InvalidArgument, []string{"spec.labels"}},
		"driver":        {&musterv1.SecretSpec{Name: "a", Data: []byte("x"), Driver: &musterv1.Driver{Name: "vault"}}, codes.Unimplemented, []string{"spec.driver"}},
		"name is taken": {secretSpec("TAKEN", []byte("x")), codes.AlreadyExists, nil},
		"most data":     {secretSpec("b", make([]byte, 500<<10)), codes.OK, nil},
	} {
		subtest(t, name, func(t *testing.T) {
			f, _ := startSealed(t, seal.NewKeyring(newKey(t)))
			f.createSecret(secretSpec("taken", []byte("data")))
			_, err := f.CreateSecret(t.Context(), &musterv1.CreateSecretRequest{Spec: c.spec})
			wantCode(t, err, c.code, c.fields...)
		})
	}
}

func TestSecretWithoutClusterKeyIsRefusedByFlag(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startSealed(t, nil)
		_, err := f.CreateSecret(t.Context(), &musterv1.CreateSecretRequest{Spec: secretSpec("a", []byte("x"))})
		wantCode(t, err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), "--cluster-key-file") {
			t.Errorf("error %v does not name the flag", err)
		}
	})
}

func TestSecretRotationReplacesData(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		keys := seal.NewKeyring(newKey(t))
		f, _ := startSealed(t, keys)
		created := f.createSecret(secretSpec("app", []byte("one")))
		rotate := func(version uint64, data []byte) (*musterv1.Secret, error) {
			resp, err := f.RotateSecret(t.Context(), &musterv1.RotateSecretRequest{Secret: "APP", Version: version, Data: data})
			return resp.GetSecret(), err
		}
		rotated, err := rotate(created.Meta.Version, bytes.Repeat([]byte("two"), 100_000))
		if err != nil || rotated.Id != created.Id || rotated.Meta.Version <= created.Meta.Version || rotated.Spec.Labels["team"] != "web" {
			t.Fatalf("rotate: %v, %v", rotated, err)
		}
		if got, err := f.open(keys, created.Id); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("two"), 100_000)) {
			t.Errorf("data after: %d bytes, %v", len(got), err)
		}
		_, err = rotate(created.Meta.Version, []byte("three"))
		wantCode(t, err, codes.Aborted)
		_, err = rotate(0, nil)
		wantCode(t, err, codes.InvalidArgument, "version")
		_, err = rotate(rotated.Meta.Version, nil)
		wantCode(t, err, codes.InvalidArgument, "data")
		_, err = rotate(rotated.Meta.Version, make([]byte, 500<<10+1))
		wantCode(t, err, codes.InvalidArgument, "data")
		_, err = f.RotateSecret(t.Context(), &musterv1.RotateSecretRequest{Secret: "none", Version: 1, Data: []byte("x")})
		wantCode(t, err, codes.NotFound)
	})
}

func TestConfigRotationReplacesData(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		created := f.createConfig(configSpec("app", []byte("one")))
		rotate := func(version uint64, data string) (*musterv1.Config, error) {
			resp, err := f.RotateConfig(t.Context(), &musterv1.RotateConfigRequest{Config: "app", Version: version, Data: []byte(data)})
			return resp.GetConfig(), err
		}
		rotated, err := rotate(created.Meta.Version, "two!")
		if err != nil || rotated.Size != 4 || rotated.Id != created.Id || rotated.Digest == created.Digest {
			t.Fatalf("rotate: %v, %v", rotated, err)
		}
		got, err := f.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: "app"})
		if err != nil || string(got.Config.Spec.Data) != "two!" {
			t.Errorf("data after: %v, %v", got, err)
		}
		if same, err := rotate(rotated.Meta.Version, "two!"); err != nil || same.Meta.Version != rotated.Meta.Version {
			t.Errorf("the same data again: %v, %v", same, err)
		}
		_, err = rotate(created.Meta.Version, "three")
		wantCode(t, err, codes.Aborted)
		_, err = rotate(rotated.Meta.Version, "")
		wantCode(t, err, codes.InvalidArgument, "data")
	})
}

func TestSecretInUseIsNotRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startSealed(t, seal.NewKeyring(newKey(t)))
		used := f.createSecret(secretSpec("used", []byte("x")))
		spec := webSpec("web")
		spec.Task.GetContainer().Secrets = []*musterv1.SecretReference{{SecretId: used.Id}}
		digest, err := state.Digest(spec.Task)
		if err != nil {
			t.Fatal(err)
		}
		f.update(func(tx *store.Tx) {
			f.Tables.Specs.Put(tx, state.SpecKey(digest), &recordv1.Spec{Task: spec.Task, CreatedAt: 1})
			f.Tables.Services.Put(tx, "id-web", &recordv1.Service{Spec: &musterv1.ServiceSpec{Name: "web"}, TaskDigest: digest, SpecVersion: 1})
		})
		_, err = f.RemoveSecret(t.Context(), &musterv1.RemoveSecretRequest{Secret: "used"})
		wantCode(t, err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), `secret "used" is used by services (web)`) {
			t.Errorf("error is %v", err)
		}
		f.update(func(tx *store.Tx) { f.Tables.Services.Delete(tx, "id-web") })
		if _, err := f.RemoveSecret(t.Context(), &musterv1.RemoveSecretRequest{Secret: "used"}); err != nil {
			t.Errorf("remove without users: %v", err)
		}
		f.createSecret(secretSpec("used", []byte("y")))
	})
}

// TestResealLosesNothingWhileSecretsChange replaces the cluster key while secrets are
// created and rotated. Afterwards the new key alone opens the newest data of each.
func TestResealLosesNothingWhileSecretsChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		before, after := newKey(t), newKey(t)
		f, sealer := startSealed(t, seal.NewKeyring(before, after))
		const writers, rounds = 4, 30
		var mu sync.Mutex
		want := map[string]string{}
		var running sync.WaitGroup
		for w := range writers {
			running.Go(func() {
				for n := range rounds {
					data := fmt.Sprintf("%d-%d-0", w, n)
					created, err := f.CreateSecret(t.Context(), &musterv1.CreateSecretRequest{Spec: secretSpec(fmt.Sprintf("s-%d-%d", w, n), []byte(data))})
					if err != nil {
						t.Errorf("create: %v", err)
						return
					}
					next := fmt.Sprintf("%d-%d-1", w, n)
					switch _, err := f.RotateSecret(t.Context(), &musterv1.RotateSecretRequest{Secret: created.Secret.Id, Version: created.Secret.Meta.Version, Data: []byte(next)}); status.Code(err) {
					case codes.OK:
						data = next
					case codes.Aborted: // It was resealed in between.
					default:
						t.Errorf("rotate: %v", err)
					}
					mu.Lock()
					want[created.Secret.Id] = data
					mu.Unlock()
				}
			})
		}
		names := []string{after.Name(), before.Name()}
		for i := range 7 {
			if err := sealer.Reseal(t.Context(), names[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		running.Wait()
		if err := sealer.Reseal(t.Context(), after.Name()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if counts := sealer.Count(); len(counts) != 1 || counts[after.Name()] != writers*rounds {
			t.Errorf("keys seal %v", counts)
		}
		for id, data := range want {
			if got, err := f.open(seal.NewKeyring(after), id); err != nil || string(got) != data {
				t.Errorf("secret %s: %q, %v, want %q", id, got, err, data)
			}
		}
	})
}

func TestSecretsAreSealedWithTheKeyOfTheLastReseal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := newKey(t), newKey(t)
		f, sealer := startSealed(t, seal.NewKeyring(first, second))
		if err := sealer.Reseal(t.Context(), second.Name()); err != nil {
			t.Fatal(err)
		}
		created := f.createSecret(secretSpec("app", []byte("x")))
		if got, err := f.open(seal.NewKeyring(second), created.Id); err != nil || string(got) != "x" {
			t.Errorf("with the key of the reseal: %q, %v", got, err)
		}
		without := sealing.New(f.Backend, seal.NewKeyring(first), nil)
		_, err := without.Current(t.Context(), f.Snapshot())
		wantCode(t, err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), second.Name()) {
			t.Errorf("error %v does not name the key", err)
		}
	})
}

func TestServiceRefersToSecretByName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startSealed(t, seal.NewKeyring(newKey(t)))
		spec := webSpec("web")
		spec.Task.GetContainer().Secrets = []*musterv1.SecretReference{{SecretName: "APP"}}
		_, err := f.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec})
		wantCode(t, err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), `there is no secret "APP"`) {
			t.Errorf("error is %v", err)
		}
		secret := f.createSecret(secretSpec("app", []byte("x")))
		created := f.create(spec)
		if ref := created.Spec.Task.GetContainer().Secrets[0]; ref.SecretId != secret.Id || ref.SecretName != "app" {
			t.Errorf("stored as %v", ref)
		}
		_, err = f.RemoveSecret(t.Context(), &musterv1.RemoveSecretRequest{Secret: "app"})
		wantCode(t, err, codes.FailedPrecondition)
	})
}

// TestRotationRestartsServicesThatAskForIt has a service for each kind of use of one secret
// and one config.
func TestRotationRestartsServicesThatAskForIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := startSealed(t, seal.NewKeyring(newKey(t)))
		secret, config := f.createSecret(secretSpec("app", []byte("x"))), f.createConfig(configSpec("app", []byte("x")))
		create := func(name string, secret, config musterv1.OnChange_Action) {
			spec := webSpec(name)
			c := spec.Task.GetContainer()
			c.Secrets = []*musterv1.SecretReference{{SecretName: "app", OnChange: &musterv1.OnChange{Action: secret}}}
			c.Configs = []*musterv1.ConfigReference{{ConfigName: "app", OnChange: &musterv1.OnChange{Action: config}}}
			f.create(spec)
		}
		none, restart := musterv1.OnChange_NONE, musterv1.OnChange_RESTART
		create("on-secret", restart, none)
		create("on-config", none, restart)
		create("on-none", none, none)
		forced := func() string {
			synctest.Wait()
			var all []string
			for _, name := range []string{"on-secret", "on-config", "on-none"} {
				all = append(all, fmt.Sprint(f.get(name).Spec.Task.ForceUpdate))
			}
			return strings.Join(all, " ")
		}
		if _, err := f.RotateSecret(t.Context(), &musterv1.RotateSecretRequest{Secret: "app", Version: secret.Meta.Version, Data: []byte("y")}); err != nil {
			t.Fatal(err)
		}
		if got := forced(); got != "1 0 0" {
			t.Errorf("after the secret: %s", got)
		}
		resp, err := f.RotateConfig(t.Context(), &musterv1.RotateConfigRequest{Config: "app", Version: config.Meta.Version, Data: []byte("y")})
		if err != nil {
			t.Fatal(err)
		}
		if got := forced(); got != "1 1 0" {
			t.Errorf("after the config: %s", got)
		}
		// The same data again changes nothing, and a stale version is refused as a whole.
		for version, code := range map[uint64]codes.Code{resp.Config.Meta.Version: codes.OK, config.Meta.Version: codes.Aborted} {
			_, err := f.RotateConfig(t.Context(), &musterv1.RotateConfigRequest{Config: "app", Version: version, Data: []byte("y")})
			wantCode(t, err, code)
		}
		if got := forced(); got != "1 1 0" {
			t.Errorf("at the end: %s", got)
		}
	})
}
