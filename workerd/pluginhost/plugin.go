package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/internal/bounds"
)

const (
	// firstPause and longestPause bound the pauses before a plugin that ended
	// is started again. A plugin that ran for steadyAfter begins with the first again.
	firstPause   = 100 * time.Millisecond
	longestPause = 30 * time.Second
	steadyAfter  = time.Minute
	// shortPause is how long a call waits for a plugin that is about to be
	// started again; if it would take longer, the call fails.
	shortPause = time.Second
	// describeTimeout is what the contract gives an executor to describe
	// itself. One that misses it mostSilences times in a row hangs, and is
	// killed.
	describeTimeout = 10 * time.Second
	mostSilences    = 3
)

// errReplaced is why a plugin does not run for a moment while it is upgraded.
var errReplaced = errors.New("its file was replaced, and it is being started again")

// plugin is a plugin, whether its process runs or not.
type plugin struct {
	host *Host
	file file
	log  *zap.Logger
	// calls is what tasks call of an executor. It stays the same over restarts.
	calls *calls

	mu sync.Mutex
	// running is the process that runs, if one does.
	running *instance
	// starting is the attempt to start it that is under way, if one is.
	starting *attempt
	// pause grows with starts that failed and runs that were short, in a row; failure
	// is the last of them, and no attempt is made before retryAt.
	pause   *backoff.Backoff
	failure error
	retryAt time.Time
	// said is the last answer to Describe, and checksum that of the file that
	// the process was started from.
	said     about
	checksum string
	// seen is the file as it was looked at last, refusal is why a new one is not
	// taken, and replacing the process that ends because it is.
	seen      os.FileInfo
	refusal   error
	replacing *instance
	// silences counts the times in a row that Describe had no answer.
	silences int
}

// attempt is one attempt to start a plugin.
type attempt struct {
	done chan struct{}
	err  error
}

func newPlugin(h *Host, f file) *plugin {
	p := &plugin{host: h, file: f, log: h.log.With(zap.String(f.kind.field, f.name)), pause: backoff.New(firstPause, longestPause)}
	p.calls = &calls{plugin: p}
	return p
}

// moved notes where the plugin's file is now: its name may be taken by another
// directory's.
func (p *plugin) moved(f file) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.file.path, p.file.args = f.path, f.args
}

// busy says whether the plugin has a process or is about to.
func (p *plugin) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running != nil || p.starting != nil
}

// service returns the process's service, and starts the process if it does not
// run.
func (p *plugin) service(ctx context.Context) (*instance, error) {
	for {
		p.mu.Lock()
		if i := p.running; i != nil {
			p.mu.Unlock()
			return i, nil
		}
		if pause := time.Until(p.retryAt); pause > 0 && p.starting == nil {
			err := p.down(pause)
			p.mu.Unlock()
			if pause > shortPause {
				return nil, err
			}
			if err := backoff.Sleep(ctx, pause); err != nil {
				return nil, err
			}
			continue
		}
		a := p.starting
		if a == nil {
			a = &attempt{done: make(chan struct{})}
			if !p.host.spawn(func(ctx context.Context) { p.start(ctx, a) }) {
				p.mu.Unlock()
				return nil, p.wrap(&executor.Error{Code: codes.Unavailable, Temporary: true, Err: errEnding})
			}
			p.starting = a
		}
		p.mu.Unlock()
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// down is the error of a call to a plugin that does not run. p.mu is held.
func (p *plugin) down(pause time.Duration) error {
	return p.wrap(&executor.Error{
		Code: codes.Unavailable, Temporary: true, RetryAfter: max(pause, firstPause), BlameNode: true,
		Err: p.failure,
	})
}

// wrap says whose error it is.
func (p *plugin) wrap(e *executor.Error) error {
	named := *e
	named.Err = fmt.Errorf("%s %s: %w", p.file.kind.noun, p.file.name, e.Err)
	return &named
}

// start makes one attempt to start the plugin.
func (p *plugin) start(ctx context.Context, a *attempt) {
	i, err := p.launch(ctx)
	p.mu.Lock()
	p.starting = nil
	if err != nil {
		p.failed(err)
		a.err = p.down(time.Until(p.retryAt))
	} else {
		p.running, p.said, p.checksum, p.silences = i, i.said, i.checksum, 0
		p.failure, p.refusal = nil, nil
	}
	p.mu.Unlock()
	close(a.done)
	p.host.metrics.started(p.file.kind, p.file.name, err)
	p.changed()
	if err != nil {
		p.log.Error("plugin does not start", zap.String("file", p.path()), zap.Error(err))
		return
	}
	p.log.Info("plugin is up",
		zap.String("file", p.path()), zap.String("version", i.said.version()), zap.String("pid", i.process.ID()))
	p.host.metrics.runs(p.file.kind, p.file.name, 1)
	p.watch(ctx, i)
	p.host.metrics.runs(p.file.kind, p.file.name, 0)
	p.changed()
}

// changed wakes the listener to plugins of this kind.
func (p *plugin) changed() { p.host.changed(p.file.kind) }

// watch looks after a process until it has ended.
func (p *plugin) watch(ctx context.Context, i *instance) {
	began := time.Now()
	select {
	case <-i.process.exited:
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.running = nil
	if p.replacing == i {
		p.replacing = nil
		p.pause.Reset()
		p.retryAt = time.Now()
		p.failure = errReplaced
	} else if ctx.Err() == nil {
		if time.Since(began) >= steadyAfter {
			p.pause.Reset()
		}
		err := i.process.ended()
		p.failed(err)
		p.log.Error("plugin ended; its tasks keep running", zap.Error(err), zap.String("last_output", i.output.last()))
	}
	p.mu.Unlock()
	i.stop()
}

// failed notes that the plugin did not start, or ended. p.mu is held.
func (p *plugin) failed(err error) {
	p.failure = err
	p.retryAt = time.Now().Add(p.pause.Next())
}

// result is a label for metrics.
func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// described returns the executor as it last described itself.
func (p *plugin) described() *executor.Described {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := executor.NewDescribed(p.calls, p.said.executor)
	// The file's name is what pins, logs and settings call it.
	d.Name, d.Description.Name = p.file.name, p.file.name
	d.Description.Checksum = p.checksum
	if sick, message := p.trouble(); message != "" {
		if sick {
			d.Description.Health = musterv1.ExecutorDescription_UNHEALTHY
		} else if d.Excess != nil {
			message = fmt.Sprintf("%v; %s", d.Excess, message)
		}
		d.Description.Message = bounds.Text(message, nodereport.MaxExecutorMessage)
	}
	return d
}

// firstDescribed returns the executor once it has described itself, or why it
// has not.
func (p *plugin) firstDescribed(ctx context.Context) (*executor.Described, error) {
	p.mu.Lock()
	known := p.said.known()
	p.mu.Unlock()
	if !known {
		if _, err := p.service(ctx); err != nil {
			return nil, err
		}
	}
	return p.described(), nil
}

// ask asks the plugin what it is. What goes wrong is part of what is then known.
func (p *plugin) ask(ctx context.Context) {
	i, err := p.service(ctx)
	if err != nil {
		return
	}
	inner, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	said, err := p.file.kind.describe(inner, i)
	p.mu.Lock()
	switch {
	case p.running != i:
	case err == nil:
		p.said, p.silences = said, 0
	case inner.Err() != nil && ctx.Err() == nil:
		p.silences++
	}
	hangs := p.running == i && p.silences >= mostSilences
	p.mu.Unlock()
	if hangs {
		p.log.Error("plugin hangs and is killed", zap.Int("silences", mostSilences))
		if err := i.process.Kill(ctx); err != nil {
			p.log.Error("failed to kill plugin", zap.Error(err))
		}
	}
}
