package docker_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/wire"
)

// registryServer is a registry that serves one image to those who know its
// password, and counts the questions for it.
type registryServer struct {
	host  string
	pulls atomic.Int64
}

const registryUser, registryPassword = "muster", "let me in"

// newRegistry serves an image whose one file tells it from all others.
func newRegistry(t *testing.T) *registryServer {
	t.Helper()
	var layer, compressed bytes.Buffer
	w := tar.NewWriter(&layer)
	content := fmt.Sprint(time.Now().UnixNano())
	if err := w.WriteHeader(&tar.Header{Name: "mark", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&compressed)
	if _, err := z.Write(layer.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	digest := func(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
	encode := func(value any) []byte {
		raw, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	config := encode(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/mark"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}},
	})
	const manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	manifest := encode(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": map[string]any{"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config), "digest": digest(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": compressed.Len(), "digest": digest(compressed.Bytes())}},
	})
	blobs := map[string][]byte{digest(config): config, digest(compressed.Bytes()): compressed.Bytes()}
	r := &registryServer{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if user, password, _ := request.BasicAuth(); user != registryUser || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		switch path := request.URL.Path; {
		case path == "/v2/":
		case strings.HasPrefix(path, "/v2/app/manifests/"):
			r.pulls.Add(1)
			w.Header().Set("Content-Type", manifestType)
			w.Header().Set("Docker-Content-Digest", digest(manifest))
			_, _ = w.Write(manifest)
		case strings.HasPrefix(path, "/v2/app/blobs/"):
			_, _ = w.Write(blobs[strings.TrimPrefix(path, "/v2/app/blobs/")])
		default:
			http.NotFound(w, request)
		}
	}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.host = at.Host
	return r
}

// auth is a Docker auth config as specs carry it.
func auth(t *testing.T, password string) string {
	t.Helper()
	raw, err := json.Marshal(registry.AuthConfig{Username: registryUser, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	return base64.URLEncoding.EncodeToString(raw)
}

func TestPullPolicies(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	name := r.host + "/app:1"
	prepare := func(policy musterv1.PullOptions_Policy, password string) error {
		t.Helper()
		b := newBench(t, taskSpec(&musterv1.ContainerSpec{Image: name, PullOptions: &musterv1.PullOptions{
			Policy: policy, RegistryAuth: auth(t, password),
		}}))
		_, err := b.Prepare(b.context(), b.task, nil)
		return err
	}
	c := engine(t)
	t.Cleanup(func() {
		if _, err := c.ImageRemove(context.Background(), name, image.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
	for step, test := range []struct {
		policy   musterv1.PullOptions_Policy
		password string
		good     bool
		pulls    bool
	}{
		{musterv1.PullOptions_NEVER, registryPassword, false, false},
		{musterv1.PullOptions_MISSING, "wrong", false, false},
		{musterv1.PullOptions_POLICY_UNSPECIFIED, "wrong", false, false},
		{musterv1.PullOptions_MISSING, registryPassword, true, true},
		{musterv1.PullOptions_MISSING, "wrong", true, false},
		{musterv1.PullOptions_NEVER, "wrong", true, false},
		{musterv1.PullOptions_ALWAYS, registryPassword, true, true},
		// The registry refuses, and the local image has to do.
		{musterv1.PullOptions_ALWAYS, "wrong", true, false},
	} {
		before := r.pulls.Load()
		err := prepare(test.policy, test.password)
		if (err == nil) != test.good {
			t.Fatalf("step %d: Prepare = %v, want good = %t", step, err, test.good)
		}
		if err != nil {
			if got := fault(t, err); got.Temporary || got.Blame != wire.BlameNode || !strings.Contains(got.Error(), name) {
				t.Errorf("step %d: Prepare = %+v (%v)", step, got, got)
			}
		}
		if pulled := r.pulls.Load() > before; pulled != test.pulls {
			t.Errorf("step %d: pulled = %t, want %t", step, pulled, test.pulls)
		}
	}
}

// A name that says which bytes it means needs no registry once they are here.
func TestADigestIsPulledOnce(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	c := engine(t)
	pulled, err := c.ImagePull(t.Context(), r.host+"/app:1", image.PullOptions{RegistryAuth: auth(t, registryPassword)})
	if err != nil {
		t.Fatal(err)
	}
	var drained bytes.Buffer
	if _, err := drained.ReadFrom(pulled); err != nil {
		t.Fatal(err)
	}
	if err := pulled.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := c.ImageInspect(t.Context(), r.host+"/app:1")
	if err != nil || len(found.RepoDigests) != 1 {
		t.Fatalf("the pulled image = %v, %v: %s", found.RepoDigests, err, drained.String())
	}
	t.Cleanup(func() {
		if _, err := c.ImageRemove(context.Background(), found.ID, image.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
	before := r.pulls.Load()
	for _, name := range []string{found.RepoDigests[0], found.ID} {
		b := newBench(t, taskSpec(&musterv1.ContainerSpec{Image: name, PullOptions: &musterv1.PullOptions{Policy: musterv1.PullOptions_ALWAYS}}))
		if _, err := b.Prepare(b.context(), b.task, nil); err != nil {
			t.Errorf("Prepare of %s = %v", name, err)
		}
	}
	if got := r.pulls.Load(); got != before {
		t.Errorf("the registry was asked %d times more", got-before)
	}
}
