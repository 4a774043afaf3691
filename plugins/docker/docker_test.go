package docker_test

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
	"strings"
	"sync"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/conformance"
	"github.com/musterhq/muster/plugins/docker"
	"github.com/musterhq/muster/plugins/executortest"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/plugins/sdk/wire"
	testneed "github.com/musterhq/muster/test/kit/need"
)

func TestMain(m *testing.M) {
	os.Exit(executortest.Main(m, func() (sdk.Executor, error) {
		return docker.New(docker.Config{Version: "test", StateDir: sdk.StateDir(""), PoolSize: 1})
	}))
}

// testImage holds busybox and nothing else. It is made here, for nothing can be
// pulled in a test.
const testImage = "muster-test/busybox:local"

// engine returns the Engine of this machine with the test image in it. Without
// an Engine the test is skipped, but for CI, where there has to be one.
func engine(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Ping(ctx); err != nil {
		testneed.Met(t, fmt.Errorf("ask the Docker Engine (scripts/test-env starts one): %w", err))
	}
	if err := makeImage(t.Context(), c); err != nil {
		t.Fatalf("make the test image: %v", err)
	}
	return c
}

// makingImage keeps tests that run at once from making the image at once.
var makingImage sync.Mutex

// applets are the commands that tests use.
var applets = []string{"sh", "sleep", "cat", "echo", "env", "pwd", "id", "ls", "printf", "hostname", "wget", "nc", "touch", "rm", "true", "false", "head", "tail", "mount", "grep", "wc", "kill"}

func makeImage(ctx context.Context, c *client.Client) error {
	makingImage.Lock()
	defer makingImage.Unlock()
	if _, err := c.ImageInspect(ctx, testImage); err == nil {
		return nil
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w (scripts/test-env installs it)", err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "data/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{
		"bin/busybox": binary, "etc/passwd": []byte("root:x:0:0:root:/:/bin/sh\n"), "etc/group": []byte("root:x:0:\n"),
	} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	for _, applet := range applets {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	answer, err := c.ImageImport(ctx, image.ImportSource{Source: &files, SourceName: "-"}, testImage, image.ImportOptions{
		Changes: []string{"ENV PATH=/bin"},
	})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}

func neverPull() *musterv1.PullOptions {
	return &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER}
}

func taskSpec(spec *musterv1.ContainerSpec) *musterv1.TaskSpec {
	if spec.Image == "" {
		spec.Image = testImage
	}
	if spec.PullOptions == nil {
		spec.PullOptions = neverPull()
	}
	return &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: spec}}
}

// script writes its first arguments to standard output, the others to standard
// error, and behaves as asked.
const script = `%s
n=$1; shift
while [ $n -gt 0 ]; do printf '%%s\n' "$1"; shift; n=$((n-1)); done
for line in "$@"; do printf '%%s\n' "$line" >&2; done
%s`

func behaviorSpec(behavior executortest.Behavior) *musterv1.TaskSpec {
	end := fmt.Sprintf("sleep %f; exit %d", behavior.RunFor.Seconds(), behavior.ExitCode)
	if behavior.Forever {
		end = "while :; do sleep 0.05; done"
	}
	// The first process of a container ignores what it has no handler for.
	trap := "trap 'exit 143' TERM"
	if behavior.Stubborn {
		trap = "trap '' TERM"
	}
	if len(behavior.Reads) > 0 {
		read := "cat " + strings.Join(behavior.Reads, " ")
		trap, end = fmt.Sprintf("%s; trap '%s' HUP", trap, read), read+"; "+end
	}
	spec := &musterv1.ContainerSpec{
		Command: []string{"/bin/sh", "-c", fmt.Sprintf(script, trap, end), "sh"},
		Args:    append(append([]string{fmt.Sprint(len(behavior.Says))}, behavior.Says...), behavior.Complains...),
	}
	if behavior.Sick {
		spec.Healthcheck = check(fmt.Sprintf("echo '%s'; exit %d", conformance.SickOutput, conformance.SickExitCode), 5)
	}
	if behavior.Grace > 0 {
		spec.StopGracePeriod = durationpb.New(behavior.Grace)
	}
	return taskSpec(spec)
}

// containers returns a task's containers, by their names.
func containers(t testing.TB, c *client.Client, taskID string, all bool) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	listed, err := c.ContainerList(ctx, container.ListOptions{
		All: all, Filters: filters.NewArgs(filters.Arg("label", "com.musterhq.task.id="+taskID)),
	})
	if err != nil {
		t.Error(err)
	}
	var names []string
	for _, one := range listed {
		names = append(names, strings.Join(one.Names, " ")+" "+one.State)
	}
	return names
}

func TestConformance(t *testing.T) {
	c := engine(t)
	executortest.Run(t, func(t *testing.T) *executortest.Harness {
		dir := t.TempDir()
		env := []string{wire.StateDirKey + "=" + dir}
		if host := os.Getenv(client.EnvOverrideHost); host != "" {
			env = append(env, client.EnvOverrideHost+"="+host)
		}
		return &executortest.Harness{
			Plugin:  executortest.StartPlugin(t, env...),
			Spec:    behaviorSpec,
			Wrong:   wrong(),
			Running: func(taskID string) int { return len(containers(t, c, taskID, false)) },
			Left: func(taskID string) []string {
				files, err := filepath.Glob(filepath.Join(dir, "*"+taskID+"*"))
				if err != nil {
					t.Error(err)
				}
				if _, err := c.ContainerInspect(context.Background(), "muster-pause-"+taskID); !cerrdefs.IsNotFound(err) {
					files = append(files, fmt.Sprintf("the pause container (%v)", err))
				}
				return append(files, containers(t, c, taskID, true)...)
			},
			Slow: true,
		}
	})
}

// wrong are specs that are refused for what a field says.
func wrong() map[string]*musterv1.TaskSpec {
	specs := map[string]*musterv1.TaskSpec{
		"container": {},
		"image":     taskSpec(&musterv1.ContainerSpec{Image: "Not An Image"}),
		"isolation": taskSpec(&musterv1.ContainerSpec{Isolation: "hyperv"}),
		"labels":    taskSpec(&musterv1.ContainerSpec{Labels: map[string]string{"com.musterhq.task.id": "x"}}),
		"hosts[0]":  taskSpec(&musterv1.ContainerSpec{Hosts: []string{"10.0.0.1"}}),
		"privileges.credential_spec": taskSpec(&musterv1.ContainerSpec{Privileges: &musterv1.Privileges{
			CredentialSpec: &musterv1.CredentialSpec{},
		}}),
		"privileges.seccomp.profile": taskSpec(&musterv1.ContainerSpec{Privileges: &musterv1.Privileges{
			Seccomp: &musterv1.SeccompOpts{Mode: musterv1.SeccompOpts_CUSTOM, Profile: []byte("{")},
		}}),
		"mounts[1].type": taskSpec(&musterv1.ContainerSpec{Mounts: []*musterv1.Mount{
			{Type: musterv1.Mount_TMPFS, Target: "/x"}, {Type: musterv1.Mount_CLUSTER, Target: "/y"},
		}}),
		"mounts[0].source": taskSpec(&musterv1.ContainerSpec{Mounts: []*musterv1.Mount{
			{Type: musterv1.Mount_BIND, Source: "etc", Target: "/x"},
		}}),
		"mounts[0].target": taskSpec(&musterv1.ContainerSpec{Mounts: []*musterv1.Mount{
			{Type: musterv1.Mount_TMPFS, Target: "x"},
		}}),
	}
	specs["networks"] = taskSpec(&musterv1.ContainerSpec{})
	specs["networks"].Networks = []*musterv1.NetworkAttachmentConfig{{Target: "n"}}
	specs["resources.swap_bytes"] = taskSpec(&musterv1.ContainerSpec{})
	specs["resources.swap_bytes"].Resources = &musterv1.ResourceRequirements{SwapBytes: new(int64(1 << 20))}
	return specs
}
