package control_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/apidtest"
	"github.com/musterhq/muster/apid/authority"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/control"
	"github.com/musterhq/muster/apid/probes"
	"github.com/musterhq/muster/apid/sealing"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/apid/tokens"
	"github.com/musterhq/muster/internal/seal"
	"github.com/musterhq/muster/internal/store"
)

// fixture is the server of one replica, whose calls are made without a wire.
type fixture struct {
	*control.Server
	t *testing.T
}

func start(t *testing.T) *fixture {
	t.Helper()
	f, _ := startSealed(t, testKeys(t))
	return f
}

// startSealed starts a server with the given cluster keys, and returns its sealer.
func startSealed(t *testing.T, keys *seal.Keyring) (*fixture, *sealing.Sealer) {
	t.Helper()
	opens := true
	return startFound(t, keys, oneDispatcher{keys.Names(), &opens})
}

// looker finds daemons.
type looker interface {
	Look(ctx context.Context) clusterstatus.Findings
}

func startFound(t *testing.T, keys *seal.Keyring, found looker) (*fixture, *sealing.Sealer) {
	t.Helper()
	return startOn(t, keys, found, nil)
}

// startProbed starts a server that asks workers.
func startProbed(t *testing.T, prober *probes.Prober) *fixture {
	t.Helper()
	keys, opens := testKeys(t), true
	f, _ := startOn(t, keys, oneDispatcher{keys.Names(), &opens}, prober)
	return f
}

func startOn(t *testing.T, keys *seal.Keyring, found looker, prober *probes.Prober) (*fixture, *sealing.Sealer) {
	t.Helper()
	b := backendtest.StartSealed(t, keys)
	sealer := sealing.New(b, keys, nil)
	return &fixture{control.New(b, control.Options{
		Tokens: tokens.New(b), Authority: authority.New(b, authority.Options{Sealer: sealer, Looker: found}), Sealer: sealer, Watchers: prometheus.NewGauge(prometheus.GaugeOpts{}), Prober: prober,
	}), t}, sealer
}

// testKeys returns a ring with a new key.
func testKeys(t *testing.T) *seal.Keyring {
	t.Helper()
	keys, err := seal.MakeKeys(filepath.Join(t.TempDir(), "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// subtest runs a subtest in virtual time.
func subtest(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// update writes what another daemon would write.
func (f *fixture) update(fn func(tx *store.Tx)) {
	f.t.Helper()
	if err := f.Update(f.t.Context(), func(tx *store.Tx) error { fn(tx); return nil }); err != nil {
		f.t.Fatal(err)
	}
	synctest.Wait()
}

func webSpec(name string) *musterv1.ServiceSpec { return apidtest.WebSpec(name) }

func (f *fixture) create(spec *musterv1.ServiceSpec) *musterv1.Service {
	f.t.Helper()
	return apidtest.Must(f.CreateService(f.t.Context(), &musterv1.CreateServiceRequest{Spec: spec}))(f.t).Service
}

func (f *fixture) get(ref string) *musterv1.Service {
	f.t.Helper()
	return apidtest.Must(f.GetService(f.t.Context(), &musterv1.GetServiceRequest{Service: ref}))(f.t).Service
}

func configSpec(name string, data []byte) *musterv1.ConfigSpec {
	return &musterv1.ConfigSpec{Name: name, Data: data, Labels: map[string]string{"team": "web"}}
}

func (f *fixture) createConfig(spec *musterv1.ConfigSpec) *musterv1.Config {
	f.t.Helper()
	return apidtest.Must(f.CreateConfig(f.t.Context(), &musterv1.CreateConfigRequest{Spec: spec}))(f.t).Config
}

func wantCode(t testing.TB, err error, code codes.Code, fields ...string) {
	t.Helper()
	apidtest.WantCode(t, err, code, fields...)
}
