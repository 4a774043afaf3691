package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// managersUser is the user that the managers run as: a number that no machine gives
// to a user, so that it owns nothing there.
const managersUser = "65532"

// recipe says what one image is made of.
type recipe struct {
	name, description string
	config            v1.Config
	// content are the layers, what changes seldom first.
	content [][]entry
}

// entry is one file or folder of an image.
type entry struct {
	to   string
	mode int64
	// from is a file of the programs' folder, or a folder of which everything is
	// taken; empty for a folder that is empty, and for text.
	from string
	text string
}

// recipes are the images that there are.
func recipes() []recipe {
	base := []entry{
		{to: "etc/passwd", mode: 0o644, text: "root:x:0:0:root:/:/nonexistent\nmuster:x:" + managersUser + ":" + managersUser + ":muster:/:/nonexistent\n"},
		{to: "etc/group", mode: 0o644, text: "root:x:0:\nmuster:x:" + managersUser + ":\n"},
		{to: "tmp", mode: 0o1777},
	}
	muster := []entry{{to: "usr/local/bin/muster", mode: 0o755, from: "muster"}}
	config := v1.Config{
		Entrypoint: []string{"/usr/local/bin/muster"},
		Env:        []string{"PATH=/usr/local/bin", "MUSTER_LOG_FORMAT=json"},
		WorkingDir: "/",
	}
	managers, worker := config, config
	managers.User = managersUser + ":" + managersUser
	// Executors make containers and processes: the worker is root, in its container.
	worker.User = "0:0"
	worker.Cmd = []string{"workerd"}
	worker.Volumes = map[string]struct{}{"/var/lib/muster": {}}
	return []recipe{
		{
			name: "musterhq/muster", description: "Muster: every manager daemon, and the command line",
			config: managers, content: [][]entry{base, muster},
		},
		{
			name: "musterhq/muster-worker", description: "Muster's worker, with the executors that ship",
			config: worker, content: [][]entry{
				append(slices.Clone(base), entry{to: "var/lib/muster", mode: 0o700}),
				{{to: "usr/local/lib/muster/plugins", mode: 0o755, from: "plugins"}},
				muster,
			},
		},
	}
}

// layers makes the image's layers. All files belong to root, and are of one time.
func (r recipe) layers(programs string, at time.Time) ([]v1.Layer, error) {
	var layers []v1.Layer
	for _, entries := range r.content {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		folders := map[string]bool{}
		for _, e := range entries {
			if err := e.write(w, programs, at, folders); err != nil {
				return nil, err
			}
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b.Bytes())), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

func (e entry) write(w *tar.Writer, programs string, at time.Time, folders map[string]bool) error {
	if e.text != "" {
		return writeFile(w, e.to, e.mode, []byte(e.text), at, folders)
	}
	if e.from == "" {
		return writeFolder(w, e.to, e.mode, at, folders)
	}
	from := filepath.Join(programs, e.from)
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return copyFile(w, from, e.to, e.mode, at, folders)
	}
	files, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := copyFile(w, filepath.Join(from, f.Name()), path.Join(e.to, f.Name()), e.mode, at, folders); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(w *tar.Writer, from, to string, mode int64, at time.Time, folders map[string]bool) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeFile(w, to, mode, data, at, folders)
}

func writeFile(w *tar.Writer, to string, mode int64, data []byte, at time.Time, folders map[string]bool) error {
	if err := writeFolder(w, path.Dir(to), 0o755, at, folders); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: to, Mode: mode, Size: int64(len(data)), ModTime: at, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// writeFolder writes a folder and those above it, each once.
func writeFolder(w *tar.Writer, to string, mode int64, at time.Time, folders map[string]bool) error {
	if to == "." || folders[to] {
		return nil
	}
	if parent := path.Dir(strings.TrimSuffix(to, "/")); parent != "." {
		if err := writeFolder(w, parent, 0o755, at, folders); err != nil {
			return err
		}
	}
	folders[to] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: to + "/", Mode: mode, ModTime: at, Format: tar.FormatPAX})
}
