//go:build systemd

package install_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
)

// TestBoot runs the commands of docs/install.md on a machine with a real systemd as
// its first process, ends daemons in every way, and boots that machine once more. The
// machine is this one, in namespaces and with its disk under an overlay, so that
// nothing of it changes.
func TestBoot(t *testing.T) {
	if os.Geteuid() != 0 {
		need.Met(t, errors.New("namespaces need root"))
	}
	for _, program := range []string{"consul", "unshare", "ip", "bash", "tar", "systemctl", "systemd-analyze"} {
		need.Program(t, program)
	}
	consul, err := exec.LookPath("consul")
	must(t, err)
	boot, err := filepath.Abs("testdata/boot")
	must(t, err)
	dir := t.TempDir()
	archive(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "install"), []byte("set -euxo pipefail\ncd /root/install\n"+commands(t)+installed), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "again"), []byte("set -euxo pipefail\n"+bootedAgain), 0o600))

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--fork", "--kill-child", "bash", boot)
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "W=" + dir, "CONSUL=" + consul}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, "SAID ") {
			t.Log(line[5:])
		}
	}
	t.Logf("two boots took %v", time.Since(began).Round(time.Second))
}

// installed continues where the page ends.
const installed = `
units="muster-apid muster@orchestratord muster@allocatord muster@schedulerd muster@dispatcherd muster-workerd"
tasks() { muster service ps hello --format '{{.id}}' | sort; }
pid() { systemctl show -P MainPID "$1"; }
until [ "$(muster service ps hello | grep -cw Running)" = 2 ]; do sleep 0.2; done

echo "SAID $(systemctl --version | head -n 1)"
test "$(cat /proc/1/comm)" = systemd
systemctl is-active $units
systemd-analyze verify --man=no muster-apid.service muster@schedulerd.service muster-workerd.service
for unit in muster-apid muster@schedulerd; do
  systemd-analyze security --no-pager --threshold=15 $unit | tail -n 1 | sed "s/^/SAID /"
done
systemd-analyze security --no-pager --threshold=75 muster-workerd | tail -n 1 | sed "s/^/SAID /"
# A manager has no user of its own, no capabilities, and no file that others can read.
for unit in muster-apid muster@schedulerd; do
  status=/proc/$(pid $unit)/status
  test "$(awk '/^Uid/ {print $2}' $status)" -ge 61184
  test "$(awk '/^CapEff/ {print $2}' $status)" = 0000000000000000
  test "$(awk '/^CapBnd/ {print $2}' $status)" = 0000000000000000
  test "$(awk '/^NoNewPrivs/ {print $2}' $status)" = 1
  test "$(awk '/^Seccomp:/ {print $2}' $status)" = 2
done
test -z "$(find /var/lib/private/muster-schedulerd /var/lib/muster -perm /077 ! -type l ! -type s -path '*identity.pem')"

# A restart in order, also of all at once, moves no task.
before=$(tasks)
systemctl restart muster@schedulerd muster-apid muster-workerd
muster cluster status --wait 60s
test "$before" = "$(tasks)"
# What is killed comes back, and the worker's end is none of the tasks'.
for unit in $units; do
  old=$(pid $unit)
  kill -KILL $old
  until new=$(pid $unit) && [ "$new" != 0 ] && [ "$new" != "$old" ] && systemctl is-active --quiet $unit; do sleep 0.2; done
done
muster cluster status --wait 60s
test "$before" = "$(tasks)"
# A worker that is stopped leaves its tasks alone.
systemctl stop muster-workerd
sleep 1
test "$(pgrep -fc 'date; sleep 5')" -ge 2
systemctl start muster-workerd
until muster node ls | grep -q Ready; do sleep 0.2; done
test "$before" = "$(tasks)"
# One whose settings are wrong says so, is tried again, and starts once they are right.
echo 'shards: many' >> /etc/muster/schedulerd.yaml
systemctl restart --no-block muster@schedulerd
until journalctl -u muster@schedulerd --no-pager | grep -q 'schedulerd.yaml'; do sleep 0.2; done
journalctl -u muster@schedulerd --no-pager | grep 'schedulerd.yaml' | tail -n 1 | sed "s/^/SAID /"
sed -i '/^shards: many/d' /etc/muster/schedulerd.yaml
until systemctl is-active --quiet muster@schedulerd; do sleep 0.2; done
muster cluster status --wait 60s
`

// bootedAgain is what must hold after the machine was booted again.
const bootedAgain = `
units="muster-apid muster@orchestratord muster@allocatord muster@schedulerd muster@dispatcherd muster-workerd"
for unit in $units; do until systemctl is-active --quiet $unit; do sleep 0.2; done; done
muster cluster status --wait 60s
until [ "$(muster service ps hello | grep -cw Running)" = 2 ]; do sleep 0.2; done
until [ "$(pgrep -fc 'date; sleep 5')" -ge 2 ]; do sleep 0.2; done
muster service rm hello
until [ -z "$(muster task ls --format '{{.id}}')" ]; do sleep 0.2; done
systemctl stop $units consul
for unit in $units; do test "$(systemctl show -P Result $unit)" = success; done
! pgrep -x muster
test -z "$(systemctl --failed --plain --no-legend 'muster*')"
`

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
