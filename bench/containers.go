package main

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
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const (
	// sleeperImage holds one program, which sleeps until it is told to end.
	sleeperImage = "muster-bench:sleeper"
	// dockerRuns is how many `docker run` are under way at a time.
	dockerRuns = 8
	// sleeperLabel marks the containers of `docker run`.
	sleeperLabel = "muster-bench"
)

// sleeper is that program.
const sleeper = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, os.Interrupt)
	<-end
}
`

// containers starts real containers on one node: by docker run, several at a
// time, and by Muster, in turns, so that both meet the same machine.
func containers(ctx context.Context, s *site) (err error) {
	docker, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return fmt.Errorf("reach the Docker Engine: %w", err)
	}
	defer func() { err = errors.Join(err, docker.Close()) }()
	if err := importSleeper(ctx, docker); err != nil {
		return err
	}
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	gone, err := s.watchRemovals(ctx)
	if err != nil {
		return err
	}
	n := s.result.Tasks
	muster := func(name string, n int) (time.Duration, error) {
		began := time.Now()
		service, err := s.create(ctx, containerSpec(name, n))
		if err != nil {
			return 0, err
		}
		if err := await(watch, runs(service.Id, uint64(n))); err != nil {
			return 0, err
		}
		return time.Since(began), nil
	}
	// The first container of an image may cost more.
	one, err := muster("one", 1)
	if err != nil {
		return err
	}
	dockers, err := dockerRun(ctx, s, docker, n)
	if err != nil {
		return err
	}
	all, err := muster("all", n)
	if err != nil {
		return err
	}
	s.result.add("first container running", one.Seconds(), "s")
	s.result.add("all running", all.Seconds(), "s")
	s.result.add("containers", float64(n)/all.Seconds(), "/s")
	s.result.add("docker run, 8 at once", float64(n)/dockers.Seconds(), "/s")
	s.result.add("of docker run's rate", 100*dockers.Seconds()/all.Seconds(), "%")
	began := time.Now()
	if _, err := s.client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: "all"}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := gone.await(n); err != nil {
		return err
	}
	s.result.add("removed", time.Since(began).Seconds(), "s")
	if _, err := s.client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: "one"}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return gone.await(1)
}

func containerSpec(name string, n int) *musterv1.ServiceSpec {
	s := spec(name, n, nil)
	s.Task = &musterv1.TaskSpec{Runtime: &musterv1.TaskSpec_Container{Container: &musterv1.ContainerSpec{
		Image: sleeperImage, PullOptions: &musterv1.PullOptions{Policy: musterv1.PullOptions_NEVER},
	}}}
	return s
}

// dockerRun starts containers with the command that people use, and removes them.
func dockerRun(ctx context.Context, s *site, docker *client.Client, n int) (took time.Duration, err error) {
	ids := make([]string, n)
	defer func() {
		// Also when the measurement has failed.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, s.each(clean, n, dockerRuns, func(ctx context.Context, i int) error {
			if ids[i] == "" {
				return nil
			}
			return docker.ContainerRemove(ctx, ids[i], container.RemoveOptions{Force: true})
		}))
	}()
	began := time.Now()
	err = s.each(ctx, n, dockerRuns, func(ctx context.Context, i int) error {
		out, err := exec.CommandContext(ctx, "docker", "run", "--detach", "--label", sleeperLabel, sleeperImage).Output()
		if err != nil {
			return fmt.Errorf("docker run: %w", err)
		}
		ids[i] = string(bytes.TrimSpace(out))
		return nil
	})
	return time.Since(began), err
}

// importSleeper builds the program and makes an image of it alone.
func importSleeper(ctx context.Context, docker *client.Client) (err error) {
	dir, err := os.MkdirTemp("", "muster-sleeper-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "sleeper")
	if err := os.WriteFile(source, []byte(sleeper), 0o600); err != nil {
		return fmt.Errorf("write program: %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build program: %w: %s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := w.WriteHeader(&tar.Header{Name: "sleeper", Mode: 0o755, Size: int64(len(content))}); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if _, err := w.Write(content); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	answer, err := docker.ImageImport(ctx, image.ImportSource{Source: &files, SourceName: "-"}, sleeperImage,
		image.ImportOptions{Changes: []string{`CMD ["/sleeper"]`}})
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}
