// Package release_test holds what is promised of releases: that the same source gives
// the same files wherever and by whomever it is built, and that what is in an archive
// works where it is unpacked.
package release_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
)

const (
	root    = "../.."
	version = "v9.9.9"
)

// platform is this machine's: that for others is built the same way.
var platform = "linux/" + runtime.GOARCH

// snapshot copies the tree as it is now: what is known to git, and what would be.
func snapshot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", `
		git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh |
			tar --null -T - -cf - | tar -C "$TO" -xf -`)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "TO="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy the tree: %v\n%s", err, out)
	}
	return dir
}

// release builds a release out of a copy of a tree in a folder, and returns its
// checksums.
func release(t *testing.T, source, dir, umask string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	bin, err := filepath.Abs(filepath.Join(root, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", fmt.Sprintf(`
		umask %[1]s
		mkdir -p %[2]s
		tar -C %[3]s -cf - . | tar --no-same-permissions -C %[2]s -xf -
		cd %[2]s
		./scripts/release %[4]s %[5]s`, umask, dir, source, version, platform))
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "PATH="+bin+":"+os.Getenv("PATH"), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("release: %v\n%s", err, out)
	}
	sums, err := os.ReadFile(filepath.Join(dir, "dist/SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	return string(sums)
}

// TestRelease builds in two folders, by people whose files have other modes, and
// compares; and then uses the archive as its recipient does.
func TestRelease(t *testing.T) {
	for _, program := range []string{"git", "bash", "tar", "gzip", "sha256sum", "cyclonedx-gomod"} {
		need.Program(t, program)
	}
	if _, err := os.Stat(filepath.Join(root, "charts/muster/Chart.yaml")); err == nil {
		need.Program(t, "helm")
	}
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "elsewhere/second")
	source := snapshot(t)
	one, two := release(t, source, first, "022"), release(t, source, second, "077")
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("two builds of one source differ (-one +other):\n%s", diff)
	}
	name := fmt.Sprintf("muster-%s-%s", version, strings.ReplaceAll(platform, "/", "-"))
	for _, file := range []string{name + ".tar.gz", "muster-" + version + ".oci.tar", "muster-worker-" + version + ".oci.tar", "NOTES.md", "muster-" + version + "-" + strings.ReplaceAll(platform, "/", "-") + ".cdx.json"} {
		if !strings.Contains(one, "  "+file+"\n") {
			t.Errorf("there is no %s:\n%s", file, one)
		}
	}
	t.Logf("\n%s", one)
	use(t, filepath.Join(first, "dist"), name)
}

// use unpacks an archive and does what the README says.
func use(t *testing.T, dist, name string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	api := network.FreeAddress(t)
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", fmt.Sprintf(`
		sha256sum --check --strict --quiet %[1]s/SHA256SUMS
		tar -xzf %[1]s/%[2]s.tar.gz -C "$HOME"
		cd "$HOME/%[2]s"
		bin/muster version | grep -F %[3]s
		test "$(find . -perm /022 ! -type l | wc -l)" = 0
		man -l share/man/man1/muster-apid.1 >/dev/null 2>&1 || grep -q '\.TH' share/man/man1/muster-apid.1
		bash -n share/completions/muster.bash
		bin/muster dev --listen %[4]s --rest-listen %[5]s --ops-listen %[6]s --dispatcher-listen %[7]s >dev.log 2>&1 &
		trap 'code=$?; kill %%1; wait; [ $code = 0 ] || cat dev.log; exit $code' EXIT
		until bin/muster node ls --format '{{.status.state}}' | grep -q READY; do kill -0 %%1; sleep 0.2; done
		bin/muster service create --file examples/hello/service.yaml
		bin/muster service logs --tail 1 hello
		bin/muster service rm hello`,
		dist, name, version, api, network.FreeAddress(t), network.FreeAddress(t), network.FreeAddress(t)))
	cmd.Dir = dist
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + t.TempDir(), "MUSTER_ADDRESS=" + api}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 20 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the archive is of no use: %v\n%s", err, out)
	}
}
