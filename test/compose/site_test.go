package compose_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/kit/need"
	"github.com/musterhq/muster/test/kit/process"
	"github.com/musterhq/muster/test/kit/wait"
)

const (
	// root is the project's folder.
	root = "../.."
	// scriptTimeout bounds one run of up or down, or of building images.
	scriptTimeout = 10 * time.Minute
	// commandTimeout bounds any other command.
	commandTimeout = 4 * time.Minute
	contextName    = "compose-test"
)

// site is a Compose project of a test's own.
type site struct {
	project, tag string
	// shell is the image of tasks.
	shell string
	dir   string
	env   []string
}

// newSite makes images, and says where everything is. It takes down what is left
// when the test ends.
func newSite(t *testing.T) *site {
	t.Helper()
	s := newImages(t)
	s.found(t, "")
	return s
}

// beside is another project, with the same images.
func (s *site) beside(t *testing.T, name string) *site {
	t.Helper()
	other := &site{project: s.project + "-" + name, tag: s.tag, shell: s.shell, dir: t.TempDir()}
	other.found(t, name)
	return other
}

// newImages makes what projects share: their images.
func newImages(t *testing.T) *site {
	t.Helper()
	for _, program := range []string{"docker-compose", "consul", "busybox"} {
		need.Program(t, program)
	}
	need.Answer(t, "docker", "version")
	id := strings.ToLower(rand.Text()[:8])
	s := &site{project: "muster-test-" + id, tag: "test-" + id, shell: "muster-test-shell:" + id, dir: t.TempDir()}
	t.Cleanup(func() { s.removeImages(t) })
	s.makeImages(t)
	return s
}

// found says where the project has everything. The name tells its logs from others'.
func (s *site) found(t *testing.T, name string) {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(root, "bin/image/programs/linux-"+runtime.GOARCH))
	must(t, err)
	grpc, rest := freePorts(t)
	s.env = append(os.Environ(),
		"PATH="+bin+":"+os.Getenv("PATH"),
		"COMPOSE_PROJECT_NAME="+s.project, "MUSTER_VERSION="+s.tag, "CONSUL_VERSION="+s.tag,
		"MUSTER_GRPC_PORTS="+grpc, "MUSTER_REST_PORTS="+rest,
		"MUSTER_ADMIN_DIR="+filepath.Join(s.dir, "admin"), "MUSTER_CONTEXTS_FILE="+filepath.Join(s.dir, "contexts.json"), "MUSTER_CONTEXT_NAME="+contextName,
		// A process of the machine, which process 1 may be no way to where tests run.
		"MUSTER_MACHINE_PID="+strconv.Itoa(os.Getpid()),
	)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := s.tryCompose(context.WithoutCancel(t.Context()), "logs", "--tail", "40")
			t.Log(name, out, err)
		}
		// Also where the test ended in the middle.
		s.down(t)
	})
}

// freePorts finds two ranges of two free ports, below those that
// connections are given.
func freePorts(t *testing.T) (grpc, rest string) {
	t.Helper()
	for range 100 {
		p := 20000 + mathrand.IntN(12000)
		if free(p) && free(p+1) && free(p+2) && free(p+3) {
			return fmt.Sprintf("%d-%d", p, p+1), fmt.Sprintf("%d-%d", p+2, p+3)
		}
	}
	t.Fatal("there are no four free ports side by side")
	return "", ""
}

func free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	return err == nil && l.Close() == nil
}

// run runs a command, and returns what it says.
func (s *site) run(ctx context.Context, timeout time.Duration, dir, name string, args ...string) (string, error) {
	// Also at the end of a test, when its own context is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	path := name
	for _, v := range s.env {
		// The programs built here come first.
		if dirs, ok := strings.CutPrefix(v, "PATH="); ok && !strings.Contains(name, "/") {
			if at := filepath.Join(strings.Split(dirs, ":")[0], name); executable(at) {
				path = at
			}
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = dir, s.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return out.String(), nil
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// script runs up or down, and returns what it says.
func (s *site) script(t *testing.T, name string, args ...string) string {
	t.Helper()
	began := time.Now()
	out, err := s.run(t.Context(), scriptTimeout, filepath.Join(root, "compose"), "./"+name, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-4000):])
	}
	t.Logf("%s %s took %v", name, strings.Join(args, " "), time.Since(began).Round(time.Second))
	return out
}

// down takes the project down. An Engine that was busy may have miscounted the endpoints of
// a network, and not let go of it until it is restarted: that is not down's fault.
func (s *site) down(t *testing.T) {
	t.Helper()
	out, err := s.run(t.Context(), scriptTimeout, filepath.Join(root, "compose"), "./down")
	if err == nil {
		return
	}
	if len(s.stuck(t)) == 0 || s.docker(t, "ps", "-aq", "--filter", "label=com.docker.compose.project="+s.project) != "" {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-4000):])
	}
	t.Logf("%v\n%s", err, out[max(0, len(out)-1000):])
}

// stuck returns the project's networks that no container is in, and that the Engine does
// not remove when it is asked to.
func (s *site) stuck(t *testing.T) []string {
	t.Helper()
	var stuck []string
	for _, id := range strings.Fields(s.docker(t, "network", "ls", "-q", "--filter", "name="+s.project)) {
		if s.docker(t, "network", "inspect", "--format", "{{len .Containers}}", id) != "0" {
			continue
		}
		if _, err := process.Docker(t.Context(), nil, "network", "rm", id); err != nil {
			t.Log(err)
			stuck = append(stuck, id)
		}
	}
	return stuck
}

// tryCompose runs docker-compose in the project.
func (s *site) tryCompose(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, commandTimeout, filepath.Join(root, "compose"), "docker-compose", args...)
}

// muster runs the command line, logged in by up.
func (s *site) muster(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, commandTimeout, s.dir, "muster", args...)
}

// docker runs Docker's command line.
func (s *site) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := process.Docker(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// containers returns the ids of a service's that run.
func (s *site) containers(t *testing.T, service string) []string {
	t.Helper()
	ids := strings.Fields(s.docker(t, "ps", "-q", "--no-trunc", "--filter", "label=com.docker.compose.project="+s.project, "--filter", "label=com.docker.compose.service="+service))
	if len(ids) == 0 {
		t.Fatalf("no container of %s runs", service)
	}
	return ids
}

func (s *site) inspect(t *testing.T, id, format string) string {
	t.Helper()
	return s.docker(t, "inspect", "--format", format, id)
}

// file returns a file of a service's container.
func (s *site) file(t *testing.T, service, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "file")
	s.docker(t, "cp", s.containers(t, service)[0]+":"+path, to)
	b, err := os.ReadFile(to)
	must(t, err)
	return string(b)
}

// awaitContainers waits until a service of containers has so many that run.
func (s *site) awaitContainers(t *testing.T, service string, n int) {
	t.Helper()
	wait.Within(t, waitTimeout, fmt.Sprintf("%d containers of %s run", n, service), func(ctx context.Context) error {
		out, err := process.Docker(ctx, nil, "ps", "-q", "--filter", "label=com.musterhq.service.name="+service, "--filter", "ancestor="+s.shell)
		if got := len(strings.Fields(out)); err == nil && got != n {
			err = fmt.Errorf("%d run", got)
		}
		return err
	})
}
