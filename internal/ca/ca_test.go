package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/ca"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/mtls"
	"github.com/musterhq/muster/internal/seal"
)

func newSpace(t *testing.T) *embedded.KV {
	t.Helper()
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	return space
}

// lifetime is that of certificates.
const lifetime = time.Hour

// run runs an authority until the test ends.
func run(t *testing.T, space *embedded.KV, key *seal.Key) *ca.Authority {
	t.Helper()
	return runWith(t, space, seal.NewKeyring(key))
}

func runWith(t *testing.T, space *embedded.KV, keys *seal.Keyring) *ca.Authority {
	t.Helper()
	return runConfig(t, ca.Config{KV: space, Keys: keys})
}

func runConfig(t *testing.T, cfg ca.Config) *ca.Authority {
	t.Helper()
	cfg.Prefix, cfg.Lifetime = "muster", lifetime
	if cfg.Logger == nil {
		cfg.Logger = zaptest.NewLogger(t)
	}
	a, err := ca.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return a
}

func newKey(t *testing.T) *seal.Key {
	t.Helper()
	key, err := seal.MakeKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestAwaitSeesAuthorityMadeBeforeItWaits has the authority made after Await has looked
// for it, and before it waits for a change.
func TestAwaitSeesAuthorityMadeBeforeItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a *ca.Authority
		made := false
		// The message that it waits comes in between.
		log := zaptest.NewLogger(t, zaptest.WrapOptions(zap.Hooks(func(e zapcore.Entry) (err error) {
			if e.Level == zap.WarnLevel {
				made, err = a.Init(t.Context())
			}
			return err
		})))
		a = runConfig(t, ca.Config{KV: newSpace(t), Keys: seal.NewKeyring(newKey(t)), Logger: log})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.Await(ctx); err != nil || !made {
			t.Errorf("Await = %v; the authority was made while it waited: %v", err, made)
		}
	})
}

// TestAuthorityIsMadeOnce makes it twice, reads it with another key, and looks
// for its secrets in what the store holds.
func TestAuthorityIsMadeOnce(t *testing.T) {
	space, key := newSpace(t), newKey(t)
	a := run(t, space, key)
	if made, err := a.Init(t.Context()); err != nil || !made {
		t.Fatalf("Init = %v, %v", made, err)
	}
	first, err := a.JoinTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := run(t, space, key)
	if made, err := again.Init(t.Context()); err != nil || made {
		t.Fatalf("Init again = %v, %v", made, err)
	}
	if tokens, err := again.JoinTokens(t.Context()); err != nil || tokens != first {
		t.Errorf("the join tokens are %v, %v, want %v", tokens, err, first)
	}
	if _, err := run(t, space, newKey(t)).JoinTokens(t.Context()); err == nil {
		t.Error("another key opens the authority's secrets")
	}
	pairs, _, err := space.List(t.Context(), "muster/", kv.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret := first.Worker[strings.LastIndexByte(first.Worker, '-')+1:]
	for _, p := range pairs {
		if bytes.Contains(p.Value, []byte(secret)) {
			t.Errorf("%s holds the worker's join token", p.Key)
		}
	}
}

func TestJoinTokens(t *testing.T) {
	space, key := newSpace(t), newKey(t)
	a, other := run(t, space, key), run(t, space, key)
	if _, err := a.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokens, err := a.JoinTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check := func(what, token string, manager bool, want error) {
		t.Helper()
		if err := other.CheckJoin(t.Context(), token, manager); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	check("a worker's token for a worker", tokens.Worker, false, nil)
	check("a manager's token for a manager", tokens.Manager, true, nil)
	check("a worker's token for a manager", tokens.Worker, true, ca.ErrToken)
	check("a manager's token for a worker", tokens.Manager, false, ca.ErrToken)
	check("no token", "", false, ca.ErrToken)
	check("another secret", tokens.Worker+"x", false, ca.ErrToken)
	fresh, err := a.RotateJoin(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	check("a worker's token that was replaced", tokens.Worker, false, ca.ErrToken)
	check("the new one", fresh, false, nil)
	check("the manager's token, which was not", tokens.Manager, true, nil)
}

// TestKeeper enrols, holds its certificate against the authority, and finds it
// again in its file.
func TestKeeper(t *testing.T) {
	a := run(t, newSpace(t), newKey(t))
	if _, err := a.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state", "identity.pem")
	cfg := ca.RenewerConfig{
		Path: path, Issuer: ca.Local{Authority: a}, Identity: auth.Identity{Role: authv1.Role_APID, Name: "apid"},
		Hosts: []string{"localhost", "127.0.0.1"}, Logger: zaptest.NewLogger(t),
	}
	k, err := ca.Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := k.Source().Get()
	leaf := m.Certificate.Leaf
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.Roots, DNSName: "localhost"}); err != nil {
		t.Errorf("the certificate is not good: %v", err)
	}
	if left := time.Until(leaf.NotAfter); left > time.Hour || left < 50*time.Minute {
		t.Errorf("the certificate lasts for %v", left)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	again, err := ca.Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Source().Get().Certificate.Leaf.Equal(leaf) {
		t.Error("the certificate was not found again")
	}
	cfg.Identity = auth.Identity{Role: authv1.Role_SCHEDULERD, Name: "schedulerd"}
	if _, err := ca.Join(t.Context(), cfg); err == nil {
		t.Error("schedulerd takes the certificate of apid")
	}
}

// TestKeyIsKnownAgain has the certificate of a worker that runs end without a
// renewal: it asks with the key that it had, by which the authority knows it, and
// with a new one at each other time.
func TestKeyIsKnownAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := run(t, newSpace(t), newKey(t))
		if _, err := a.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := auth.Identity{Role: authv1.Role_WORKER, Name: "n1"}
		var mu sync.Mutex
		var asked []string
		var deaf atomic.Bool
		k, err := ca.Join(t.Context(), ca.RenewerConfig{
			Issuer: issuerFunc(func(ctx context.Context, request []byte) (*ca.Issued, error) {
				r, err := ca.ParseRequest(request)
				if err != nil {
					return nil, err
				}
				digest, err := r.KeyDigest()
				if err != nil {
					return nil, err
				}
				mu.Lock()
				asked = append(asked, string(digest))
				mu.Unlock()
				if deaf.Load() {
					return nil, errors.New("no answer")
				}
				return a.Issue(ctx, id, r, 0)
			}), Identity: id, Logger: zaptest.NewLogger(t),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		deaf.Store(true)
		time.Sleep(lifetime + 2*time.Minute)
		synctest.Wait()
		mu.Lock()
		keys := slices.Clone(asked)
		mu.Unlock()
		if keys[len(keys)-1] != keys[0] {
			t.Error("after its certificate has ended it asks with another key")
		}
		if keys[1] == keys[0] || keys[2] == keys[0] {
			t.Error("it renews its certificate with the key that it had")
		}
		deaf.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if left := time.Until(k.Source().Get().Certificate.Leaf.NotAfter); left <= 0 {
			t.Errorf("its certificate ended %v ago", -left)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

type issuerFunc func(context.Context, []byte) (*ca.Issued, error)

func (f issuerFunc) Issue(ctx context.Context, request []byte, _ *mtls.Source) (*ca.Issued, error) {
	return f(ctx, request)
}

func TestSealed(t *testing.T) {
	key, other := newKey(t), newKey(t)
	sealed, err := key.Seal("use", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := key.Open("use", sealed); err != nil || string(plain) != "secret" {
		t.Errorf("Open = %q, %v", plain, err)
	}
	if _, err := other.Open("use", sealed); err == nil {
		t.Error("another key opens it")
	}
	if _, err := key.Open("another use", sealed); err == nil {
		t.Error("it opens for another use")
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := key.Open("use", changed); err == nil {
			t.Errorf("with byte %d changed it opens", i)
		}
	}
	if _, err := key.Open("use", nil); err == nil {
		t.Error("nothing opens")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ca.ParseRequest(b); (r == nil) == (err == nil) {
			t.Errorf("%v and %v", r, err)
		}
	})
}

// TestRotation has a certificate of each root judged by those who know one root
// or both.
func TestRotation(t *testing.T) {
	space, key := newSpace(t), newKey(t)
	a, other := run(t, space, key), run(t, space, key)
	if _, err := a.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	enrol := func(a *ca.Authority) *mtls.Material {
		t.Helper()
		k, err := ca.Join(t.Context(), ca.RenewerConfig{Issuer: ca.Local{Authority: a}, Identity: auth.Identity{Role: authv1.Role_APID, Name: "apid"}, Logger: zaptest.NewLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		return k.Source().Get()
	}
	good := func(of, by *mtls.Material) bool {
		between := x509.NewCertPool()
		for _, der := range of.Certificate.Certificate[1:] {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			between.AddCert(c)
		}
		_, err := of.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: by.Roots, Intermediates: between})
		return err == nil
	}
	before := enrol(a)
	roots := func() *ca.Roots {
		t.Helper()
		r, err := a.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := roots()
	if err := a.FinishRotation(t.Context(), first.Signing); !errors.Is(err, ca.ErrNotRotating) {
		t.Errorf("without a rotation one is ended: %v", err)
	}
	if err := a.Rotate(t.Context(), "ada"); err != nil {
		t.Fatal(err)
	}
	if err := other.Rotate(t.Context(), "bob"); !errors.Is(err, ca.ErrRotating) {
		t.Errorf("two rotations at a time: %v", err)
	}
	during, r := enrol(a), roots()
	if !r.Rotating() || r.Rotation.StartedBy != "ada" || bytes.Equal(r.Signing, first.Signing) {
		t.Errorf("the rotation is %v", r.Rotation)
	}
	if !bytes.Equal(r.Of(before.Certificate.Leaf), first.Signing) || !bytes.Equal(r.Of(during.Certificate.Leaf), r.Signing) {
		t.Error("certificates are taken for those of other roots")
	}
	if err := a.FinishRotation(t.Context(), first.Signing); !errors.Is(err, ca.ErrNotRotating) {
		t.Errorf("a rotation to another root is ended: %v", err)
	}
	if err := other.FinishRotation(t.Context(), r.Signing); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RotateJoin(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	after := enrol(a)
	for _, c := range []struct {
		what   string
		of, by *mtls.Material
		want   bool
	}{
		{"the old one, by who knows the old root", before, before, true},
		{"a new one, by who knows the old root", during, before, true},
		{"one from after the rotation, by who knows the old root", after, before, true},
		{"the old one, by who knows both", before, during, true},
		{"a new one, by who knows both", during, during, true},
		{"the old one, by who knows the new root", before, after, false},
		{"a new one, by who knows the new root", during, after, true},
		{"one from after the rotation, by who knows the new root", after, after, true},
	} {
		if got := good(c.of, c.by); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	// And again: who knows the first root alone is too late now.
	if err := a.Rotate(t.Context(), "ada"); err != nil {
		t.Fatal(err)
	}
	if again := enrol(a); good(again, before) || !good(again, after) {
		t.Error("after two rotations the first root still counts, or the second does not")
	}
}
