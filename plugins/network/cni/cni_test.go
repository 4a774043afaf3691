//go:build linux

package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/network/cni"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/test/kit/need"
)

// pluginDir is where Debian's containernetworking-plugins are.
const pluginDir = "/usr/lib/cni"

func TestMain(m *testing.M) {
	if os.Getenv(wire.CookieKey) == wire.CookieValue {
		plugin, err := cni.New(cni.Config{Version: "1", StateDir: sdk.StateDir("")})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		networksdk.Serve(plugin)
		return
	}
	os.Exit(m.Run())
}

// needs says what tests with the reference plugins need.
func needs(t *testing.T) {
	t.Helper()
	need.Program(t, "ip")
	need.Program(t, "nsenter")
	need.Program(t, "iptables")
	need.Met(t, conformance.CanMakeNamespaces())
	_, err := os.Stat(filepath.Join(pluginDir, "bridge"))
	need.Met(t, err)
}

// netns makes a network namespace that has its loopback up, and returns its path.
func netns(t *testing.T, name string) string {
	t.Helper()
	name = fmt.Sprintf("mcni-%d-%s", os.Getpid(), name)
	for _, command := range [][]string{{"ip", "netns", "add", name}, {"ip", "-n", name, "link", "set", "lo", "up"}} {
		if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return "/run/netns/" + name
}

// inside runs f on a thread in a namespace.
func inside(t *testing.T, path string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		file, err := os.Open(path)
		if err == nil {
			err = errors.Join(unix.Setns(int(file.Fd()), unix.CLONE_NEWNET), file.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// configure writes a configuration of bridge, host-local and portmap, and returns the
// directory.
func configure(t *testing.T, name string, plugins ...map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	if len(plugins) == 0 {
		plugins = []map[string]any{
			{
				"type": "bridge", "bridge": "muster-cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type": "host-local", "dataDir": t.TempDir(), "ranges": [][]map[string]string{{{"subnet": "10.214.0.0/24"}}},
					"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
				},
				"dns": map[string]any{"nameservers": []string{"192.0.2.53"}},
			},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		}
	}
	raw, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": plugins})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-"+name+".conflist"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The plugin keeps the contract with the reference plugins. It runs in a namespace that
// stands for the host's.
func TestConformance(t *testing.T) {
	t.Parallel()
	needs(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	results, err := conformance.Try(t.Context(), conformance.Options{
		Command: []string{"nsenter", "--net=" + netns(t, "host"), "--", self},
		Env:     []string{"NETCONFPATH=" + configure(t, "suite"), "CNI_PATH=" + pluginDir, "GORACE=atexit_sleep_ms=0"},
		Network: &conformance.NetworkOptions{DriverOptions: map[string]string{"config": "suite"}, OwnAddresses: true, Namespaces: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Outcome != conformance.Kept {
			t.Errorf("%s: %s: %q\n%s", r.Rule, r.Outcome, r.Faults, strings.Join(r.Output, "\n"))
		}
	}
}

// newPlugin makes a plugin in this process that has applied a network.
func newPlugin(t *testing.T, confDir, plugins, config string) *cni.Plugin {
	t.Helper()
	t.Setenv("NETCONFPATH", confDir)
	t.Setenv("CNI_PATH", plugins)
	p, err := cni.New(cni.Config{Version: "1", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	failed, err := p.Apply(t.Context(), &networksdk.ApplyRequest{
		Complete: true, Node: &networksdk.Node{Id: "node"},
		Networks: []*networksdk.Network{{Id: "n1", Name: "front", Driver: cni.Driver, DriverOptions: map[string]string{"config": config}}},
	})
	if err != nil || len(failed) > 0 {
		t.Fatalf("Apply = %v, %v", failed, err)
	}
	return p
}

// serve answers connections in a namespace with a word.
func serve(t *testing.T, path, address, word string) {
	t.Helper()
	var listener net.Listener
	err := inside(t, path, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(word))
			_ = conn.Close()
		}
	}()
}

// ask connects from a namespace and returns what is answered.
func ask(t *testing.T, path, address string) string {
	t.Helper()
	var conn net.Conn
	err := inside(t, path, func() (err error) {
		conn, err = net.DialTimeout("tcp", address, 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatalf("connect to %s: %v", address, err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	raw, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// hosted makes CNI plugins run in a namespace that stands for the host's: a directory of
// scripts that enter it.
func hosted(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"bridge", "portmap", "host-local"} {
		script := fmt.Sprintf("#!/bin/sh\nexport CNI_PATH=%s\nexec nsenter --net=%s -- %s/%s\n", pluginDir, path, pluginDir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func attachRequest(id, namespace string, ports ...*networksdk.Port) *networksdk.AttachRequest {
	return &networksdk.AttachRequest{
		TaskId: id, TaskName: "web.1." + id, ServiceId: "s1", ServiceName: "web", Namespace: namespace,
		Attachments: []*networksdk.Attachment{{NetworkId: "n1"}}, Ports: ports,
	}
}

// Two tasks reach each other, the host reaches a published port, and after Detach it
// does no longer.
func TestTasksReachEachOtherAndPortsArePublished(t *testing.T) {
	needs(t)
	host := netns(t, "outer")
	p := newPlugin(t, configure(t, "bridged"), hosted(t, host), "bridged")
	one, two := netns(t, "one"), netns(t, "two")
	port := &networksdk.Port{Protocol: musterv1.PortConfig_TCP, TargetPort: 80, PublishedPort: 8080, PublishMode: musterv1.PortConfig_HOST}
	first, err := p.Attach(t.Context(), attachRequest("t1", one, port))
	if err != nil {
		t.Fatal(err)
	}
	second, err := p.Attach(t.Context(), attachRequest("t2", two))
	if err != nil {
		t.Fatal(err)
	}
	if got := first.GetNameservers(); len(got) != 1 || got[0] != "192.0.2.53" {
		t.Errorf("name servers = %q, want that of the configuration", got)
	}
	if len(first.GetPorts()) != 1 || first.GetPorts()[0].GetPublishedPort() != 8080 || len(second.GetPorts()) != 0 {
		t.Errorf("ports = %v and %v", first.GetPorts(), second.GetPorts())
	}
	address := first.GetAttachments()[0].GetAddresses()[0]
	serve(t, one, ":80", "one")
	if got := ask(t, two, address+":80"); got != "one" {
		t.Errorf("from task to task: %q", got)
	}
	if got := ask(t, host, "10.214.0.1:8080"); got != "one" {
		t.Errorf("from the host to the published port: %q", got)
	}
	if err := p.Detach(t.Context(), "t1"); err != nil {
		t.Fatal(err)
	}
	err = inside(t, host, func() error {
		conn, err := net.DialTimeout("tcp", "10.214.0.1:8080", 5*time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	if err == nil {
		t.Error("the published port answers after Detach")
	}
}

func TestMissingPartsAreNamed(t *testing.T) {
	needs(t)
	dir := configure(t, "plain", map[string]any{"type": "bridge", "bridge": "x", "ipam": map[string]any{"type": "host-local", "subnet": "10.215.0.0/24"}})
	configureInto(t, dir, "lacking", `{"cniVersion":"1.0.0","name":"lacking","plugins":[{"type":"no-such-plugin"}]}`)
	p := newPlugin(t, dir, pluginDir, "plain")
	failed, err := p.Apply(t.Context(), &networksdk.ApplyRequest{
		Node: &networksdk.Node{Id: "node"},
		Networks: []*networksdk.Network{
			{Id: "n2", Name: "lacking", Driver: cni.Driver}, {Id: "n3", Name: "missing", Driver: cni.Driver}, {Id: "n4", Name: "plain", Driver: "overlay"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{"n2": "no-such-plugin", "n3": `"missing"`, "n4": "overlay"} {
		if failed[id] == nil || !strings.Contains(failed[id].Error(), want) {
			t.Errorf("failure of %s = %v, want %q in it", id, failed[id], want)
		}
	}
	// Ports need a CNI plugin that publishes them.
	port := &networksdk.Port{Protocol: musterv1.PortConfig_TCP, TargetPort: 80, PublishedPort: 8080}
	_, err = p.Attach(t.Context(), attachRequest("t1", netns(t, "ports"), port))
	var e *wire.Error
	if !errors.As(err, &e) || e.Blame != wire.BlameNode || !strings.Contains(e.Error(), "portmap") {
		t.Errorf("Attach with a port = %v, want the node to be blamed and portmap to be named", err)
	}
	if tasks, err := p.List(t.Context(), "node"); err != nil || len(tasks) > 0 {
		t.Errorf("List = %q, %v, want nothing left", tasks, err)
	}
}

func configureInto(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "20-"+name+".conflist"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A task that runs keeps its network when its configuration is gone, and can be detached.
func TestAttachedTasksOutliveTheirConfiguration(t *testing.T) {
	needs(t)
	dir := configure(t, "bridged")
	p := newPlugin(t, dir, hosted(t, netns(t, "host2")), "bridged")
	namespace := netns(t, "task")
	first, err := p.Attach(t.Context(), attachRequest("t1", namespace))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	failed, err := p.Apply(t.Context(), &networksdk.ApplyRequest{
		Complete: true, Node: &networksdk.Node{Id: "node"},
		Networks: []*networksdk.Network{{Id: "n1", Name: "bridged", Driver: cni.Driver}},
	})
	if err != nil || failed["n1"] == nil {
		t.Fatalf("Apply without the configuration = %v, %v, want a failure", failed, err)
	}
	again, err := p.Attach(t.Context(), attachRequest("t1", namespace))
	if err != nil || again.String() != first.String() {
		t.Errorf("Attach of a task that is attached = %v, %v, want %v", again, err, first)
	}
	if _, err := p.Attach(t.Context(), attachRequest("t2", netns(t, "other"))); err == nil {
		t.Error("Attach of a new task succeeds without a configuration")
	}
	if err := p.Detach(t.Context(), "t1"); err != nil {
		t.Errorf("Detach: %v", err)
	}
}

func TestHealthNeedsConfiguration(t *testing.T) {
	t.Setenv("NETCONFPATH", t.TempDir())
	p, err := cni.New(cni.Config{Version: "1", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	said, err := p.Describe(context.Background())
	if err != nil || said.GetHealthy() || !strings.Contains(said.GetMessage(), "there is no CNI configuration") {
		t.Errorf("Describe = %v, %v, want it not to be healthy", said, err)
	}
}

// slowPlugin is a CNI plugin whose ADD ends when a file is there. It writes down what it
// has done.
const slowPlugin = `#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit;;
ADD) touch "$DIR/begun"; until [ -e "$DIR/go" ]; do sleep 0.01; done;;
esac
echo "$CNI_COMMAND" >> "$DIR/log"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.1/24"}]}'
`

// A CNI plugin that is at work when this plugin is killed ends its work before the next
// process undoes it.
func TestNextProcessWaitsForCNIPluginsOfTheKilledOne(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := strings.Replace(slowPlugin, "\n", "\nDIR="+dir+"\n", 1)
	if err := os.WriteFile(filepath.Join(dir, "slow"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	plugin := conformance.StartProgram(t, []string{self}, wire.StateDirKey+"="+t.TempDir(), "CNI_PATH="+dir, "GORACE=atexit_sleep_ms=0",
		"NETCONFPATH="+configure(t, "slow", map[string]any{"type": "slow"}))
	apply := func() {
		t.Helper()
		response, err := plugin.Network().Apply(t.Context(), &networksdk.ApplyRequest{
			Complete: true, Node: &networksdk.Node{Id: "node"}, Networks: []*networksdk.Network{{Id: "n1", Name: "slow", Driver: cni.Driver}},
		})
		if err != nil || len(response.GetErrors()) > 0 {
			t.Fatalf("Apply = %v, %v", response, err)
		}
	}
	apply()
	namespace := filepath.Join(dir, "ns")
	if err := os.WriteFile(namespace, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	attached := make(chan struct{})
	go func() {
		defer close(attached)
		_, _ = plugin.Network().Attach(t.Context(), attachRequest("t1", namespace))
	}()
	for _, err := os.Stat(filepath.Join(dir, "begun")); err != nil; _, err = os.Stat(filepath.Join(dir, "begun")) {
		if t.Context().Err() != nil {
			t.Fatal("ADD does not begin")
		}
		runtime.Gosched()
	}
	plugin.Restart()
	<-attached
	apply()
	detach := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := plugin.Network().Detach(ctx, &networkv1.DetachRequest{TaskId: "t1"})
		return err
	}
	if err := detach(300 * time.Millisecond); err == nil {
		t.Error("the task is detached while ADD is at work")
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := detach(time.Minute); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil || string(log) != "ADD\nDEL\n" {
		t.Errorf("the CNI plugin did %q, %v, want ADD and then DEL", log, err)
	}
}
