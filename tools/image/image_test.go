package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// programs writes a folder of programs for two platforms.
func programs(t *testing.T, touched time.Time) string {
	t.Helper()
	dir := t.TempDir()
	for _, platform := range []string{"linux-amd64", "linux-arm64"} {
		for _, f := range []string{"muster", "plugins/muster-executor-null", "plugins/muster-executor-docker"} {
			path := filepath.Join(dir, platform, f)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(platform+" "+f), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, touched, touched); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func build(t *testing.T, touched time.Time) string {
	t.Helper()
	out := t.TempDir()
	err := run([]string{
		"-programs", programs(t, touched), "-out", out, "-tag", "v1", "-platforms", "linux/amd64,linux/arm64",
		"-version", "v1", "-revision", "abc", "-time", "1700000000",
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSameProgramsSameImages builds twice, from files of other times, in other folders.
func TestSameProgramsSameImages(t *testing.T) {
	one, two := build(t, time.Now()), build(t, time.Unix(1, 0))
	for _, name := range []string{"muster", "muster-worker"} {
		a, b := digest(t, filepath.Join(one, name)), digest(t, filepath.Join(two, name))
		if a != b {
			t.Errorf("%s: %v and %v", name, a, b)
		}
	}
}

func digest(t *testing.T, dir string) v1.Hash {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestContent looks into the images: who owns what, who runs, for which platforms.
func TestContent(t *testing.T) {
	out := build(t, time.Now())
	for name, test := range map[string]struct {
		user    string
		has     []string
		missing string
	}{
		"muster":        {user: "65532:65532", has: []string{"usr/local/bin/muster", "tmp/", "etc/passwd"}, missing: "plugins"},
		"muster-worker": {user: "0:0", has: []string{"usr/local/bin/muster", "usr/local/lib/muster/plugins/muster-executor-docker", "var/lib/muster/"}, missing: "wanting"},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := tarball.ImageFromPath(filepath.Join(out, name+".tar"), nil)
			if err != nil {
				t.Fatal(err)
			}
			config, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Config.User != test.user || config.Config.Labels["org.opencontainers.image.revision"] != "abc" || config.Architecture != "amd64" {
				t.Errorf("the configuration is %+v", config)
			}
			files := extract(t, img)
			for _, f := range test.has {
				if _, ok := files[f]; !ok {
					t.Errorf("there is no %s", f)
				}
			}
			for f, h := range files {
				switch {
				case strings.Contains(f, test.missing):
					t.Errorf("there is a %s", f)
				case h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(time.Unix(1700000000, 0)):
					t.Errorf("%s belongs to %d:%d and is of %v", f, h.Uid, h.Gid, h.ModTime)
				case f != "tmp/" && h.Mode&0o022 != 0:
					t.Errorf("%s can be written to by others than root: %o", f, h.Mode)
				}
			}
			index, err := layout.ImageIndexFromPath(filepath.Join(out, name))
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := index.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			if len(manifest.Manifests) != 2 || manifest.Manifests[1].Platform.Architecture != "arm64" {
				t.Errorf("the layout has %+v", manifest.Manifests)
			}
		})
	}
}

func extract(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	files := map[string]*tar.Header{}
	r := mutate.Extract(img)
	defer func() { _ = r.Close() }()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		if h.Typeflag == tar.TypeDir && !strings.HasSuffix(name, "/") {
			name += "/"
		}
		files[name] = h
	}
}

// TestBadRequests are refused with a reason.
func TestBadRequests(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing":     {nil, "-programs and -out"},
		"no platform": {[]string{"-programs", "x", "-out", "y", "-platforms", "a/b/c/d/e"}, "-platforms"},
		"no time":     {[]string{"-programs", "x", "-out", "y", "-time", "now"}, "-time"},
		"no programs": {[]string{"-programs", t.TempDir(), "-out", t.TempDir()}, "muster"},
	} {
		if err := run(test.args); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
