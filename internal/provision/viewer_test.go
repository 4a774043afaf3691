package provision_test

import (
	"context"
	"os"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/provision"
	"github.com/musterhq/muster/internal/seal"
)

// TestViewerFollowsTheRoot has the certificate of what fetches metrics end, and the
// root that it is of replaced.
func TestViewerFollowsTheRoot(t *testing.T) {
	space, err := embedded.Open(embedded.Config{})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
		must(t, space.Close())
	})
	clusterKey := t.TempDir() + "/cluster.key"
	keys, err := seal.MakeKeys(clusterKey)
	must(t, err)
	a, err := ca.New(ca.Config{KV: space, Prefix: "muster", Keys: keys, Lifetime: time.Hour, Logger: zaptest.NewLogger(t)})
	must(t, err)
	go func() { ended <- a.Run(ctx) }()
	_, err = a.Init(ctx)
	must(t, err)
	c := cluster(t, t.TempDir(), 1)
	must(t, c.Files())
	text, err := os.ReadFile(clusterKey)
	must(t, err)
	must(t, os.WriteFile(c.Path(provision.Secrets, provision.ClusterKey), text, 0o600))

	wants := func(what string, long time.Duration, want bool) {
		t.Helper()
		pem, err := a.Certificates(ctx)
		must(t, err)
		if got := c.WantsViewer(string(pem), long); got != want {
			t.Errorf("%s: a certificate is wanted: %v, want %v", what, got, want)
		}
	}
	deliver := func() {
		t.Helper()
		key, csr, err := ca.NewRequest()
		must(t, err)
		request, err := ca.ParseRequest(csr)
		must(t, err)
		issued, err := a.Issue(ctx, auth.Identity{Role: authv1.Role_VIEWER, Name: "monitoring"}, request, 0)
		must(t, err)
		must(t, c.Deliver(provision.Outputs{Authorities: string(issued.Authorities), ViewerCert: string(issued.Certificate), ViewerKey: string(key)}))
	}
	wants("without any", time.Minute, true)
	deliver()
	wants("with one", time.Minute, false)
	wants("with one that ends too soon", 2*time.Hour, true)
	must(t, a.Rotate(ctx, "ada"))
	wants("while the root is replaced", time.Minute, true)
	deliver()
	wants("with one of the new root", time.Minute, false)
	roots, err := a.Roots(ctx)
	must(t, err)
	must(t, a.FinishRotation(ctx, roots.Signing))
	wants("once the old root is gone", time.Minute, false)
	if !c.WantsViewer("", time.Minute) {
		t.Error("without authorities none is wanted")
	}
}
