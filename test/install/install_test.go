// Package install_test holds what is promised to operators who install Muster
// from plain binaries: that the commands of docs/install.md work as they stand
// there, with the units that ship, and that systemd understands those.
//
// The commands run in namespaces of their own, with other folders in place of those of
// the machine that they write to. A small systemctl stands in for systemd, which does
// what units say as far as it concerns whether daemons start: see systemctl_test.go.
// With the build tag systemd they run under a real one: see boot_test.go.
package install_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/rig"
)

const root = "../.."

func TestMain(m *testing.M) {
	if os.Getenv(standIn) != "" {
		if err := systemctl(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "systemctl:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// before lays the machine out: its own loopback, copies or empty folders in place
// of all that the commands write to, Consul as its package installs it, and the
// stand-in for systemctl.
const before = `
mount --make-rprivate /
ip link set lo up
cp "$CONSUL" "$W/consul"
cp -a /etc "$W/etc" && mount --bind "$W/etc" /etc
for d in /usr/local /var/lib /opt; do mount -t tmpfs -o mode=0755 tmpfs $d; done
mkdir /usr/local/bin /opt/consul
mv "$W/consul" /usr/local/bin
echo "consul:x:61183:61183::/opt/consul:/bin/false" >> /etc/passwd
echo "consul:x:61183:" >> /etc/group
chown consul: /opt/consul
mkdir -p /etc/systemd/system
cat > /etc/systemd/system/consul.service <<END
[Service]
Type=exec
User=consul
ExecStart=/usr/local/bin/consul agent -config-dir=/etc/consul.d
END
cat > /usr/local/bin/systemctl <<END
#!/bin/sh
exec env ` + standIn + `=1 "$TESTS" "\$@"
END
chmod +x /usr/local/bin/systemctl
trap 'code=$?; [ $code = 0 ] || tail -n 30 /var/lib/units/*.log; exit $code' EXIT
cd "$W"
`

// after continues where the page ends: what it says of restarts, and down.
const after = `
task=$(muster service ps hello --format '{{.id}}' | sort)
systemctl restart muster@schedulerd muster-apid muster-workerd
muster cluster status --wait 2m
test "$task" = "$(muster service ps hello --format '{{.id}}' | sort)"
muster service rm hello
until [ -z "$(muster task ls --format '{{.id}}')" ]; do sleep 0.2; done
systemctl stop muster-workerd muster@dispatcherd muster@schedulerd muster@allocatord muster@orchestratord muster-apid consul
`

// TestInstall runs all commands of docs/install.md, in one shell, on an archive as
// `make release` packs it.
func TestInstall(t *testing.T) {
	if os.Geteuid() != 0 {
		need.Met(t, errors.New("namespaces need root"))
	}
	for _, program := range []string{"consul", "unshare", "ip", "bash", "tar"} {
		need.Program(t, program)
	}
	consul, err := exec.LookPath("consul")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -euxo pipefail\n" + before + commands(t) + after
	dir := t.TempDir()
	archive(t, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script)
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = []string{
		"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "W=" + dir, "CONSUL=" + consul, "TESTS=" + self,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the commands end with %v:\n%s", err, out)
	}
}

// commands returns those of docs/install.md, in their order.
func commands(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	script := ""
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		script += block[1]
	}
	if strings.Count(script, "systemctl enable") != 4 {
		t.Fatalf("the page's commands are not found:\n%s", script)
	}
	return script
}

// archive packs a release's archive for this machine, of the tree as it is.
func archive(t *testing.T, dir string) {
	t.Helper()
	built := filepath.Join(dir, "built")
	if err := rig.Build(t.Context(), root, built); err != nil {
		t.Fatal(err)
	}
	name := "muster-test-linux-" + platform
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "scripts/archive"), built, name, "0", "test", filepath.Join(dir, name+".tar.gz"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("archive: %v\n%s", err, out)
	}
}

// TestUnits has systemd check the units, and say how far they are closed.
func TestUnits(t *testing.T) {
	need.Program(t, "systemd-analyze")
	dir := t.TempDir()
	// A template is looked at as one of its instances.
	for from, unit := range map[string]struct {
		as string
		// exposure is the most that systemd may find, in tenths.
		exposure string
	}{
		"muster-apid.service": {"muster-apid.service", "15"}, "muster@.service": {"muster@schedulerd.service", "15"},
		"muster-workerd.service": {"muster-workerd.service", "75"},
	} {
		b, err := os.ReadFile(filepath.Join(root, "packaging/systemd", from))
		if err != nil {
			t.Fatal(err)
		}
		// What it starts is not installed where the test runs.
		text := strings.ReplaceAll(string(b), "/usr/local/bin/muster", "/bin/true")
		path := filepath.Join(dir, unit.as)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"verify", "--man=no", path}, {"security", "--offline=yes", "--threshold=" + unit.exposure, path}} {
			out, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput()
			if err != nil || args[0] == "verify" && len(out) > 0 {
				t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		}
	}
}
