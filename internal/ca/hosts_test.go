package ca_test

import (
	"context"
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/seal"
)

func TestCheckHost(t *testing.T) {
	for _, good := range []string{"localhost", "API.example", "my_host", "a-1.b", "1.example", "10.0.0.1", "::1", strings.Repeat("a", 63) + ".example"} {
		if err := ca.CheckHost(good); err != nil {
			t.Errorf("CheckHost(%q) = %v, want nil", good, err)
		}
	}
	for _, bad := range []string{
		"", "*", "*.example", "a.*", "localhost\n", "a b", "a..b", ".a", "a.", "-a.example", "a-.example", "a/b", "a:443", "ä.example", "a\x00b",
		"0.0.0.0", "::", "224.0.0.1", "10.0.0.256", "1.2.3", "fe80::1%eth0", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "example",
	} {
		if err := ca.CheckHost(bad); err == nil {
			t.Errorf("CheckHost(%q) = nil, want an error", bad)
		}
	}
}

func TestParseAllowedHostsNamesWrongEntries(t *testing.T) {
	if _, err := ca.ParseAllowedHosts([]string{"schedulerd=a.example", "schedulerd=10.0.0.1", "apid=b.example"}); err != nil {
		t.Error(err)
	}
	_, err := ca.ParseAllowedHosts([]string{"a.example", "workerd=b.example", "apid=*.example", "schedulerd="})
	for _, want := range []string{`"a.example"`, `"workerd=b.example"`, `"*.example"`, `host ""`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseAllowedHosts: %v, want it to name %s", err, want)
		}
	}
}

// TestCertificatesHaveAllowedHostsOnly asks for hosts in every role. The first host of
// each certificate is the name of its daemon, so that no program falls back to the
// common name, which a worker chooses.
func TestCertificatesHaveAllowedHostsOnly(t *testing.T) {
	allowed, err := ca.ParseAllowedHosts([]string{"schedulerd=Metrics.example", "schedulerd=10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	a := runConfig(t, ca.Config{KV: newSpace(t), Keys: seal.NewKeyring(newKey(t)), AllowedHosts: allowed})
	if _, err := a.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked := []string{"localhost", "127.0.0.1", "metrics.example", "10.0.0.1", "apid", "*"}
	for _, test := range []struct {
		id   auth.Identity
		want []string
	}{
		{auth.Identity{Role: authv1.Role_SCHEDULERD, Name: "schedulerd"}, []string{"schedulerd", "metrics.example", "10.0.0.1"}},
		{auth.Identity{Role: authv1.Role_DISPATCHERD, Name: "dispatcherd"}, []string{"dispatcherd"}},
		// One that joins, without the cluster's key.
		{auth.Identity{Role: authv1.Role_APID, Name: "apid"}, []string{"apid"}},
		{auth.Identity{Role: authv1.Role_WORKER, Name: "api.example"}, []string{"workerd"}},
		{auth.Identity{Role: authv1.Role_ADMIN, Name: "api.example"}, nil},
	} {
		k, err := ca.Join(t.Context(), ca.RenewerConfig{Issuer: signAs(a, test.id), Identity: test.id, Hosts: asked, Logger: zaptest.NewLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		m := k.Source().Get()
		leaf := m.Certificate.Leaf
		if got := hosts(leaf); !slices.Equal(got, test.want) {
			t.Errorf("hosts of %s = %q, want %q", test.id, got, test.want)
		}
		for _, host := range []string{"localhost", "127.0.0.1", "api.example"} {
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.Roots, DNSName: host}); err == nil {
				t.Errorf("the certificate of %s is good for %s", test.id, host)
			}
		}
	}
}

// TestKeeperRenewsForOtherHosts finds a certificate in its file that has more hosts than
// the authority allows by now, as one of an earlier version.
func TestKeeperRenewsForOtherHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		space, key := newSpace(t), seal.NewKeyring(newKey(t))
		allowed, err := ca.ParseAllowedHosts([]string{"schedulerd=metrics.example"})
		if err != nil {
			t.Fatal(err)
		}
		before := runConfig(t, ca.Config{KV: space, Keys: key, AllowedHosts: allowed})
		if _, err := before.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := auth.Identity{Role: authv1.Role_SCHEDULERD, Name: "schedulerd"}
		cfg := ca.RenewerConfig{
			Path: filepath.Join(t.TempDir(), "identity.pem"), Issuer: signAs(before, id), Identity: id,
			Hosts: []string{"metrics.example"}, Logger: zaptest.NewLogger(t),
		}
		k, err := ca.Join(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := hosts(k.Source().Get().Certificate.Leaf), []string{"schedulerd", "metrics.example"}; !slices.Equal(got, want) {
			t.Fatalf("hosts = %q, want %q", got, want)
		}
		var issued atomic.Int32
		cfg.Hosts = nil
		cfg.Issuer = issuerFunc(func(ctx context.Context, request []byte) (*ca.Issued, error) {
			if issued.Add(1) == 1 {
				return nil, errors.New("apid is away")
			}
			r, err := ca.ParseRequest(request)
			if err != nil {
				return nil, err
			}
			return before.Issue(ctx, id, r, 0)
		})
		for _, want := range []int32{2, 2} {
			if k, err = ca.Join(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- k.Run(ctx) }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := hosts(k.Source().Get().Certificate.Leaf); !slices.Equal(got, []string{"schedulerd"}) {
				t.Errorf("hosts a minute after the start = %q, want the daemon's name only", got)
			}
			if n := issued.Load(); n != want {
				t.Errorf("asked %d times for a certificate, want %d", n, want)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// signAs issues to an identity what it asks for, as apid does.
func signAs(a *ca.Authority, id auth.Identity) ca.Issuer {
	return issuerFunc(func(ctx context.Context, request []byte) (*ca.Issued, error) {
		r, err := ca.ParseRequest(request)
		if err != nil {
			return nil, err
		}
		return a.Issue(ctx, id, r, 0)
	})
}

func hosts(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}
