package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"go.uber.org/zap"

	"github.com/musterhq/muster/plugins/handshake"
	"github.com/musterhq/muster/plugins/sdk/wire"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/network"
)

// stopTimeout is how long a plugin may take to end when it is asked to.
const stopTimeout = 3 * time.Second

// errEnding is the error of calls that come while the worker ends.
var errEnding = errors.New("the worker ends")

// instance is a plugin's process with which there is a connection.
type instance struct {
	process *process
	client  *goplugin.Client
	// executor or network is its service, and calls is the latter for the worker.
	executor executor.Executor
	network  network.Plugin
	calls    *networkCalls
	said     about
	checksum string
	output   *output
}

// launch starts a process, connects to it, and asks it what it is.
func (p *plugin) launch(ctx context.Context) (*instance, error) {
	p.mu.Lock()
	file := p.file
	// What is looked at before it is read cannot be replaced unnoticed.
	p.seen, _ = os.Stat(file.path)
	p.mu.Unlock()
	open, sum, err := p.openPermitted()
	if err != nil {
		return nil, err
	}
	// It is there until the process has been started from it.
	defer func() { _ = open.Close() }()
	env, dir, err := p.surroundings()
	if err != nil {
		return nil, err
	}
	p.host.mu.Lock()
	sockets := p.host.sockets
	p.host.mu.Unlock()
	from := samePath(open)
	i := &instance{checksum: sum, output: &output{log: p.log}, process: newProcess(file, from, env, dir)}
	i.calls = &networkCalls{p, i}
	i.client = newClient(i.process, i.output, p.host.cfg.StartTimeout, sockets)
	if err := i.connect(ctx, file.kind, p.host.cfg.StartTimeout); err != nil {
		// A process that ended without a word has done so a moment ago; one that
		// has not is not reported to be killed here. What it wrote has been
		// read once it is stopped.
		ended := i.process.justEnded()
		i.stop()
		return nil, i.explain(err, ended)
	}
	if from == "" {
		// It was started by its path, which others cannot change. An administrator can: see
		// that what runs is what was permitted.
		if now, err := p.permitted(); err != nil || now != sum {
			i.stop()
			return nil, errors.Join(fmt.Errorf("%s is refused: it was replaced while it was started", file.path), err)
		}
	}
	return i, nil
}

// newClient returns go-plugin's side of a process that is not yet started.
func newClient(process *process, out io.Writer, limit time.Duration, sockets string) *goplugin.Client {
	return goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  handshake.Config(),
		VersionedPlugins: handshake.Versions(nil),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     limit,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: sockets},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) {
			process.cmd.Env = append(process.cmd.Env, cmd.Env...)
			return process, nil
		},
		Stderr:     out,
		SyncStdout: out,
		SyncStderr: out,
		// What go-plugin has to say is in its errors.
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Off, Output: io.Discard}),
	})
}

// surroundings returns a plugin's environment and working directory.
func (p *plugin) surroundings() (env []string, dir string, err error) {
	for _, list := range [][]string{passedEnv, p.host.cfg.PassEnv} {
		for _, name := range list {
			if value, ok := os.LookupEnv(name); ok {
				env = append(env, name+"="+value)
			}
		}
	}
	state := p.host.cfg.StateDir
	if p.file.kind == networkKind {
		state = p.host.cfg.NetworkStateDir
		if pid := p.host.cfg.MachinePID; pid != 0 {
			env = append(env, fmt.Sprintf("%s=%d", wire.MachinePIDKey, pid))
		}
	}
	if state == "" {
		return env, os.TempDir(), nil
	}
	dir = filepath.Join(state, p.file.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("make state directory: %w", err)
	}
	return append(env, wire.StateDirKey+"="+dir), dir, nil
}

// connect shakes hands and asks for the description. go-plugin's own calls know
// no context: where they take too long, the process is killed, which ends them.
func (i *instance) connect(ctx context.Context, k *kind, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit+describeTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		client, err := i.client.Client()
		if err == nil {
			err = k.connect(i, client)
		}
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = errors.Join(ctx.Err(), i.process.Kill(ctx))
		// What go-plugin makes of the kill is not what was wrong.
		i.output.log.Debug("plugin was killed during the handshake", zap.Error(<-done))
	}
	if err != nil {
		return fmt.Errorf("handshake with plugin: %w", err)
	}
	inner, stop := context.WithTimeout(ctx, describeTimeout)
	defer stop()
	if i.said, err = k.describe(inner, i); err != nil {
		return fmt.Errorf("ask plugin what it is: %w", err)
	}
	return nil
}

// explain adds to an error what is known of the process.
func (i *instance) explain(err, ended error) error {
	var more []string
	if ended != nil {
		more = append(more, ended.Error())
	}
	if last := i.output.last(); last != "" {
		more = append(more, "its last output: "+last)
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(more) > 0 {
		text += " (" + strings.Join(more, "; ") + ")"
	}
	return &startError{text, err}
}

// startError is go-plugin's error in one line, with what else is known.
type startError struct {
	text  string
	cause error
}

func (e *startError) Error() string { return e.text }
func (e *startError) Unwrap() error { return e.cause }

// stop asks the process to end, and kills it if it does not. Everything that
// belongs to it has ended then.
func (i *instance) stop() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		i.client.Kill()
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		if err := i.process.Kill(context.Background()); err != nil {
			i.output.log.Error("failed to kill plugin", zap.Error(err))
			return
		}
		<-done
	}
}
