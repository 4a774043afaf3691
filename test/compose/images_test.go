package compose_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/musterhq/muster/test/kit/process"
)

// consulImage is the name that the Compose file has for it.
const consulImage = "hashicorp/consul:"

// makeImages makes those that the Compose file names, each with a tag of the
// test's own, and one for tasks.
func (s *site) makeImages(t *testing.T) {
	t.Helper()
	// Those of Muster, as they are released.
	if out, err := s.run(t.Context(), scriptTimeout, root, "scripts/image", s.tag); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	consul, err := exec.LookPath("consul")
	must(t, err)
	files := map[string]string{"bin/consul": consul}
	for _, library := range libraries(t, consul) {
		files[library] = library
	}
	importImage(t, consulImage+s.tag, files)
	busybox, err := exec.LookPath("busybox")
	must(t, err)
	importImage(t, s.shell, map[string]string{"bin/busybox": busybox})
}

func (s *site) removeImages(t *testing.T) {
	for _, image := range []string{"musterhq/muster:" + s.tag, "musterhq/muster-worker:" + s.tag, consulImage + s.tag, s.shell} {
		if _, err := process.Docker(t.Context(), nil, "rmi", image); err != nil {
			t.Error(err)
		}
	}
}

// libraries are what a program needs besides itself; none, if it is static.
func libraries(t *testing.T, program string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ldd", program).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return regexp.MustCompile(`/\S+\.so\S*`).FindAllString(string(out), -1)
}

// importImage makes an image of nothing but files: there is no registry here.
func importImage(t *testing.T, name string, files map[string]string) {
	t.Helper()
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := writeTar(w, files)
		written <- errors.Join(err, w.CloseWithError(err))
	}()
	_, err := process.Docker(t.Context(), r, "import", "--change", "ENV PATH=/bin", "-", name)
	if err := errors.Join(err, r.Close(), <-written); err != nil {
		t.Fatalf("make image %s: %v", name, err)
	}
}

func writeTar(to io.Writer, files map[string]string) error {
	w := tar.NewWriter(to)
	for name, from := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("/", filepath.Join("/", name))
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: rel, Mode: 0o755, Size: int64(len(b))}); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Close()
}
