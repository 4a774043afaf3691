package faults_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestUpgrade replaces the programs of a cluster of the last commit by those of
// this one, one process at a time. Changes are made all the while, also between the
// end of a manager and the start of its successor, and no task notices.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	b := newBenchOf(t, former(t), cluster.Config{})
	muster, err := b.Install(built, "new")
	ok(t, err)

	ctx, stop := context.WithCancel(t.Context())
	var changing sync.WaitGroup
	changes := make(chan struct{})
	changing.Go(func() {
		for ctx.Err() == nil {
			bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitTimeout)
			if err := b.resize(bounded, b.services[0]); err != nil {
				t.Errorf("a change while programs are replaced: %v", err)
			}
			cancel()
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	})
	replace := func(name string, meanwhile func(), start func() error) {
		p := b.Process(name)
		ok(t, p.Stop())
		if code := p.ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d:\n%s", name, code, p.Tail())
		}
		meanwhile()
		ok(t, start())
	}
	for _, name := range b.Names() {
		replace(name, func() {
			// The first change may have begun before the process ended.
			<-changes
			<-changes
		}, func() error { return b.StartManagerFrom(muster, name) })
		wait.Within(t, waitTimeout, name+" has its share", b.even)
	}
	for name := range b.Nodes {
		replace(name, func() {}, func() error { return b.StartNodeFrom(muster, name) })
		wait.Within(t, waitTimeout, name+" is ready", b.Ready)
	}
	stop()
	changing.Wait()
	b.settle(t)
	b.unmoved(t)
	removeAll(t, b.Rig)
}

// resize scales a service between one and two tasks.
func (b *bench) resize(ctx context.Context, id string) error {
	b.mu.Lock()
	size := 3 - min(b.sizes[id], 2)
	b.sizes[id] = size
	b.mu.Unlock()
	if err := b.Scale(ctx, id, size); err != nil {
		return fmt.Errorf("scale %s: %w", id, err)
	}
	return wait.Until(ctx, func(ctx context.Context) error {
		_, err := b.Running(ctx, id, int(size))
		return err
	})
}

// former builds the programs of the commit before this one.
func former(t *testing.T) string {
	t.Helper()
	source, programs := t.TempDir(), filepath.Join(t.TempDir(), "programs")
	git := exec.CommandContext(t.Context(), "git", "archive", "HEAD~1")
	git.Dir = "../.."
	archive, err := git.Output()
	if err != nil {
		need.Met(t, fmt.Errorf("archive the commit before this one: %w", err))
	}
	ok(t, extract(archive, source))
	ok(t, rig.Build(t.Context(), source, programs))
	return programs
}

// extract writes what is in an archive into a directory.
func extract(archive []byte, dir string) error {
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, content, 0o644)
			}
		}
		if err != nil {
			return fmt.Errorf("extract %s: %w", h.Name, err)
		}
	}
}
