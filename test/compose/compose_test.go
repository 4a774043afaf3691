// Package compose_test brings up the Compose file for real, as an operator would:
// with its scripts, images built here, and nothing but what is published.
package compose_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/wait"
)

// waitTimeout bounds what is waited for: the machine may be busy.
const waitTimeout = 3 * time.Minute

// managers are the services of manager daemons.
func managers() []string {
	return []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd"}
}

// TestCluster takes the full set through its life.
func TestCluster(t *testing.T) {
	s := newSite(t)
	s.script(t, "up")
	api := s.client(t)
	t.Run("access control", func(t *testing.T) { closed(t, s, api) })
	t.Run("each sees its own", func(t *testing.T) { ownOnly(t, s) })
	t.Run("policies", func(t *testing.T) { policies(t, s) })
	t.Run("metrics", func(t *testing.T) { scrapes(t, s) })
	api.create(t, s.web("web", 3))
	s.awaitContainers(t, "web", 3)
	t.Run("networks", func(t *testing.T) { networks(t, s, api) })
	t.Run("scale and up again", func(t *testing.T) { scale(t, s, api) })
	t.Run("one of each is killed", func(t *testing.T) { killOneOfEach(t, s, api) })
	node := api.node(t)
	s.down(t)
	t.Run("nothing is left", func(t *testing.T) { nothingLeft(t, s, node) })
	t.Run("small", func(t *testing.T) { small(t, s.beside(t, "small")) })
}

// TestMissingImageIsNamed: up says which images it needs before it pulls any, names the
// one that it cannot get, and starts nothing.
func TestMissingImageIsNamed(t *testing.T) {
	need.Program(t, "docker-compose")
	need.Answer(t, "docker", "version")
	id := strings.ToLower(rand.Text()[:8])
	s := &site{project: "muster-test-" + id, tag: "absent-" + id, dir: t.TempDir()}
	s.found(t, "")
	// Nothing listens at this registry.
	s.env = append(s.env, "CONSUL_IMAGE=localhost:1/consul:"+s.tag)
	out, err := s.run(t.Context(), scriptTimeout, filepath.Join(root, "compose"), "./up", "--small")
	if err == nil {
		t.Fatal("up succeeds without images")
	}
	for _, want := range []string{
		"localhost:1/consul:" + s.tag + " (to be pulled)", "musterhq/muster:" + s.tag + " (to be pulled)",
		"image localhost:1/consul:" + s.tag + " is not here and cannot be pulled", "CONSUL_IMAGE",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q:\n%s", want, out)
		}
	}
	if all := s.docker(t, "ps", "-aq", "--filter", "label=com.docker.compose.project="+s.project); all != "" {
		t.Errorf("containers were made: %s", all)
	}
}

// small takes the set with one of each through the shortest life there is.
func small(t *testing.T, s *site) {
	consul := consulImage + s.tag
	s.env = append(s.env, "CONSUL_VERSION=none", "CONSUL_IMAGE="+consul)
	out := s.script(t, "up", "--small")
	for _, want := range []string{consul + " (here)", "musterhq/muster:" + s.tag + " (here)", "up: waiting for ", "up: waiting for the worker's node"} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "pull") {
		t.Errorf("up asks a registry although all images are here:\n%s", out)
	}
	for _, service := range append(managers(), "worker", "consul-1") {
		if n := len(s.containers(t, service)); n != 1 {
			t.Errorf("there are %d of %s, want 1", n, service)
		}
	}
	if all := strings.Fields(s.docker(t, "ps", "-q", "--filter", "label=com.docker.compose.project="+s.project)); len(all) != len(managers())+2 {
		t.Errorf("%d containers run, want one of each", len(all))
	}
	api := s.client(t)
	api.create(t, s.web("little", 2))
	s.awaitContainers(t, "little", 2)
	if out, err := s.muster(t.Context(), "cluster", "status", "--wait", waitTimeout.String()); err != nil {
		t.Errorf("the cluster is not well: %v\n%s", err, out)
	}
	node := api.node(t)
	s.down(t)
	nothingLeft(t, s, node)
}

// closed calls as clients without an identity.
func closed(t *testing.T, s *site, api *client) {
	stranger := *api
	stranger.token = ""
	if code, answer := stranger.call(t, http.MethodGet, "/v1/services", nil); code != http.StatusUnauthorized {
		t.Errorf("without a token: %d %v", code, answer)
	}
	resp, err := http.Get("http://" + api.addresses[0] + "/v1/services")
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("in the clear: %s", resp.Status)
		}
	}
	// Consul cannot be reached from here, nor can any daemon but apid.
	for _, service := range append(managers()[1:], "consul-1", "worker") {
		for _, id := range s.containers(t, service) {
			if ports := s.inspect(t, id, "{{json .HostConfig.PortBindings}}"); ports != "{}" && ports != "null" {
				t.Errorf("%s publishes %s", service, ports)
			}
		}
	}
}

// ownOnly looks at what the containers were given.
func ownOnly(t *testing.T, s *site) {
	for _, service := range append(managers(), "worker", "consul-1", "consul-2", "consul-3") {
		for _, id := range s.containers(t, service) {
			var has struct {
				Mounts []struct{ Type, Name string }
				Host   struct {
					ReadonlyRootfs       bool
					CapAdd, CapDrop, Opt []string
				}
			}
			text := s.inspect(t, id, `{"Mounts":{{json .Mounts}},"Host":{"ReadonlyRootfs":{{json .HostConfig.ReadonlyRootfs}},`+
				`"CapAdd":{{json .HostConfig.CapAdd}},"CapDrop":{{json .HostConfig.CapDrop}},"Opt":{{json .HostConfig.SecurityOpt}}}}`)
			must(t, json.Unmarshal([]byte(text), &has))
			var volumes []string
			for _, m := range has.Mounts {
				if m.Type == "volume" {
					volumes = append(volumes, strings.TrimPrefix(m.Name, s.project+"_"))
				}
			}
			slices.Sort(volumes)
			want := []string{service}
			if service == "worker" {
				want = []string{"node", "worker"}
			}
			if d := cmp.Diff(want, volumes); d != "" {
				t.Errorf("volumes of %s: %s", service, d)
			}
			var more []string
			if service == "worker" {
				// For networks of tasks, in the network of the machine.
				more = []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE"}
			}
			if !has.Host.ReadonlyRootfs || !slices.Equal(has.Host.CapAdd, more) || !slices.Equal(has.Host.CapDrop, []string{"ALL"}) || !slices.Contains(has.Host.Opt, "no-new-privileges:true") {
				t.Errorf("%s may do too much: %+v", service, has.Host)
			}
		}
	}
}

// policies uses a daemon's token in Consul, within its policy and outside.
func policies(t *testing.T, s *site) {
	token := strings.TrimSpace(s.file(t, "schedulerd", "/run/muster/consul.token"))
	consul := func(args ...string) (string, error) {
		return s.tryCompose(t.Context(), append([]string{
			"exec", "-T", "-e", "CONSUL_HTTP_ADDR=https://127.0.0.1:8501", "-e", "CONSUL_CACERT=/consul/data/consul-ca.pem",
			"-e", "CONSUL_HTTP_TOKEN=" + token, "consul-2", "consul",
		}, args...)...)
	}
	if out, err := consul("kv", "get", "-keys", "muster/"); err != nil || !strings.Contains(out, "muster/") {
		t.Errorf("schedulerd cannot read the state: %v: %s", err, out)
	}
	for what, args := range map[string][]string{
		"read others' keys": {"kv", "get", "other/zz"}, "write tasks": {"kv", "put", "muster/tasks/zz", "x"},
		"list tokens": {"acl", "token", "list"},
	} {
		if out, err := consul(args...); err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("schedulerd is not refused to %s: %v: %s", what, err, out)
		}
	}
}

// scale has one daemon more, by a second up, which leaves alone what is there.
func scale(t *testing.T, s *site, api *client) {
	before := map[string][]string{}
	for _, service := range append(managers(), "worker", "consul-1", "consul-2", "consul-3") {
		before[service] = s.containers(t, service)
	}
	admin := api.token
	s.script(t, "up", "--scale", "schedulerd=3")
	for service, ids := range before {
		now := s.containers(t, service)
		for _, id := range ids {
			if !slices.Contains(now, id) {
				t.Errorf("a second up replaces a container of %s", service)
			}
		}
		want := len(ids)
		if service == "schedulerd" {
			want = 3
		}
		if len(now) != want {
			t.Errorf("there are %d of %s, want %d", len(now), service, want)
		}
	}
	if again := s.client(t); again.token != admin {
		t.Error("a second up makes another administrator's token")
	}
	wait.Within(t, waitTimeout, "the third has its share", func(context.Context) error {
		_, status := api.call(t, http.MethodGet, "/v1/cluster/status", nil)
		daemons, _ := status["daemons"].([]any)
		shares := 0
		for _, d := range daemons {
			if d, _ := d.(map[string]any); d["daemon"] == "schedulerd" && len(list(d["shards"])) > 0 {
				shares++
			}
		}
		if shares != 3 {
			return fmt.Errorf("%d have one: %v", shares, daemons)
		}
		return nil
	})
}

// killOneOfEach kills a replica of each manager while services are made: each comes
// to be, and all of the tasks come to run.
func killOneOfEach(t *testing.T, s *site, api *client) {
	victims := append(managers(), "consul-1")
	var names []string
	for i := range 3 * len(victims) {
		name := fmt.Sprintf("under-way-%d", i)
		names = append(names, name)
		api.create(t, null(name, 3))
		if i%3 == 1 {
			s.docker(t, "kill", s.containers(t, victims[i/3])[0])
		}
	}
	for _, name := range names {
		api.awaitRunning(t, name, 3)
	}
	api.scale(t, "web", 5)
	s.awaitContainers(t, "web", 5)
	api.awaitRunning(t, "web", 5)
	if out, err := s.muster(t.Context(), "service", "ls"); err != nil || strings.Count(out, "3/3") != len(names) || !strings.Contains(out, "5/5") {
		t.Errorf("muster service ls: %v\n%s", err, out)
	}
	// What was killed comes back.
	s.script(t, "up", "--scale", "schedulerd=3")
	if out, err := s.muster(t.Context(), "cluster", "status", "--wait", waitTimeout.String()); err != nil {
		t.Errorf("the cluster is not well again: %v\n%s", err, out)
	}
}

// nothingLeft looks for what the project, or its node's tasks, had.
func nothingLeft(t *testing.T, s *site, node string) {
	for what, args := range map[string][]string{
		"containers":             {"ps", "-aq", "--filter", "label=com.docker.compose.project=" + s.project},
		"containers of tasks":    {"ps", "-aq", "--filter", "label=com.musterhq.node.id=" + node},
		"containers of an image": {"ps", "-aq", "--filter", "ancestor=" + s.shell},
		"volumes":                {"volume", "ls", "-q", "--filter", "label=com.docker.compose.project=" + s.project},
		"volumes by name":        {"volume", "ls", "-q", "--filter", "name=" + s.project},
	} {
		if left := s.docker(t, args...); left != "" {
			t.Errorf("%s are left: %s", what, left)
		}
	}
	if left := kernelState(t, node); len(left) > 0 {
		t.Errorf("namespaces of networks are left: %v", left)
	}
	networks := strings.Fields(s.docker(t, "network", "ls", "-q", "--filter", "name="+s.project))
	if stuck := s.stuck(t); !slices.Equal(networks, stuck) {
		t.Errorf("networks are left: %v", networks)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "admin")); err == nil {
		t.Error("the administrator's token is left")
	}
	if out, err := s.muster(t.Context(), "context", "ls"); err != nil || strings.Contains(out, contextName) {
		t.Errorf("contexts are left: %v %s", err, out)
	}
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
