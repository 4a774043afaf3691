// Package docker_test drives a cluster of real processes, with TLS and tokens on, through
// Docker's API: with the docker commands of Debian and of today, and with programs that
// were written for swarm mode. Where Docker's own swarm mode works on this machine the same
// scripts run against it.
package docker_test

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/engine"
	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/network"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// built is the directory with the programs. TestMain sets it before any test runs.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	// Scripts wait for containers for most of their time.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(rig.TestsWith(m, "docker", &built, "executor-docker", "network-overlay"))
}

// waitTimeout bounds what should take moments, on a machine that is busy.
const waitTimeout = 2 * time.Minute

// command is a docker command.
type command struct {
	name, path, version string
	// subnet begins the addresses of a network that it creates.
	subnet string
}

// commands are Debian's docker command and a current one.
func commands(t *testing.T) []command {
	t.Helper()
	need.Program(t, "docker-cli")
	current, err := exec.LookPath("docker-cli")
	if err != nil {
		t.Fatal(err)
	}
	return []command{{"debian", "/usr/bin/docker", "20.10", "10.201.0"}, {"current", current, "29.", "10.202.0"}}
}

// site is a cluster with Docker's API in front.
type site struct {
	*rig.Rig
	// socket is that of an administrator's Docker API.
	socket string
	image  string
}

// start starts a cluster with two workers that ends with the test. Their executor is the
// Docker Engine of this machine.
func start(t *testing.T) *site {
	t.Helper()
	need.Program(t, "consul")
	need.Answer(t, "docker", "version")
	need.Met(t, network.Missing())
	tag := strings.ToLower(rand.Text()[:6])
	s := &site{image: "muster-test/shell-" + tag + ":local"}
	engine.LoadFor(t, s.image)
	// Workers mount a tmpfs there that outlives them.
	runtime := rig.Dir(t)
	t.Cleanup(func() {
		if err := unix.Unmount(runtime, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	s.Rig = rig.StartFor(t, rig.Config{Built: built, Config: cluster.Config{CertificateLifetime: 24 * time.Hour}})
	s.Nodes = map[string]string{}
	// Workers on one machine have addresses and ports in common.
	ports, err := network.FreeAddresses(network.Loopback(), 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"one", "two"} {
		s.Nodes[name] = "node-" + name + "-" + tag
		port := ports[i][strings.LastIndexByte(ports[i], ':')+1:]
		if _, err := s.StartWorker(name, "--node-id", s.Nodes[name], "--data-path-port", port, "--runtime-dir", runtime, "--label", "disk="+name); err != nil {
			t.Fatal(err)
		}
	}
	s.socket = s.serve(t, "docker", "admin")
	wait.Within(t, waitTimeout, "two nodes are ready", func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, "/usr/bin/docker", "--host", s.socket, "node", "ls", "--format", "{{.Status}}").CombinedOutput()
		if err == nil && strings.Count(string(out), "Ready") < 2 {
			err = errors.New("not all are")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return s
}

// serve starts a Docker API for a token of a role, and returns what its clients connect to.
func (s *site) serve(t *testing.T, name, role string, more ...string) string {
	t.Helper()
	resp, err := s.Client("apid").CreateToken(t.Context(), &musterv1.CreateTokenRequest{Name: name, Role: role})
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(s.Dir(), name+".token")
	if err := os.WriteFile(token, []byte(resp.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(rig.Dir(t), "docker.sock")
	if _, err := s.Run("dockerapid-"+name, append([]string{"dockerapid", "--address", s.API, "--tls-ca-file", s.Secret("ca.pem"), "--token-file", token,
		"--socket", socket, "--ops-listen=", "--node", "one", "--log-level", "debug"}, more...)...); err != nil {
		t.Fatal(err)
	}
	wait.Within(t, waitTimeout, "the Docker API answers", func(context.Context) error {
		_, err := os.Stat(socket)
		return err
	})
	return "unix://" + socket
}

// startSwarm starts a Docker Engine in swarm mode that ends with the test, and returns its
// socket. Its network has no way out, so it looks for no image in a registry for long.
func startSwarm(t *testing.T) string {
	t.Helper()
	need.Met(t, errors.Join(network.Missing(), engine.Missing()))
	n, err := network.New(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	host := n.Hosts()[0]
	e, err := engine.NewOn(host, rig.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.Log())
		}
		out, err := exec.Command("/usr/bin/docker", "--host", e.Host(), "swarm", "leave", "--force").CombinedOutput()
		if err != nil {
			t.Errorf("leave the swarm: %v\n%s", err, out)
		}
		if err := e.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	out, err := exec.CommandContext(t.Context(), "/usr/bin/docker", "--host", e.Host(), "swarm", "init", "--advertise-addr", host.Address).CombinedOutput()
	if err != nil {
		t.Fatalf("start the swarm: %v\n%s", err, out)
	}
	return e.Host()
}
