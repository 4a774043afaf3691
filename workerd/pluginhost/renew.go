package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
)

// searchEvery is how often the plugin directories are looked through for files
// that are new or have been replaced. It costs a few calls to the kernel, and
// needs no watch that might miss something.
const searchEvery = 2 * time.Second

// renew looks at the files of all plugins. A plugin whose file was replaced by
// another that it may be is ended and started from that; its tasks run on.
func (h *Host) renew() {
	repinned := h.reloadPins()
	h.mu.Lock()
	plugins := h.plugins
	h.mu.Unlock()
	for _, p := range plugins {
		p.renew(repinned)
	}
}

// renew compares the plugin's file with the one that was looked at last.
func (p *plugin) renew(repinned bool) {
	info, err := os.Stat(p.path())
	if err != nil {
		// It is gone, or is being replaced just now.
		return
	}
	p.mu.Lock()
	same := p.seen != nil && os.SameFile(p.seen, info) && p.seen.Size() == info.Size() && p.seen.ModTime().Equal(info.ModTime())
	running, began := p.running, p.checksum
	// What is being started is compared once it is up; what never was has seen
	// no other file.
	if p.starting != nil || p.seen == nil || (same && !repinned) {
		p.mu.Unlock()
		return
	}
	p.seen = info
	p.mu.Unlock()
	if running == nil {
		// It need not wait for its next attempt: the reason of the last one may
		// be gone.
		p.mu.Lock()
		p.pause.Reset()
		p.retryAt = time.Now()
		p.mu.Unlock()
		p.changed()
		return
	}
	sum, refusal := p.permitted()
	p.mu.Lock()
	p.refusal = nil
	if refusal != nil {
		p.refusal = fmt.Errorf("runs on as version %s: %w", p.said.version(), refusal)
	}
	p.mu.Unlock()
	switch {
	case refusal != nil:
		p.log.Error("plugin's new file is refused; the old one keeps running", zap.Error(refusal))
		p.changed()
	case sum != began:
		p.log.Info("plugin was replaced; restarting it from the new file while its tasks keep running",
			zap.String("file", p.path()), zap.String("checksum", sum))
		p.replace(running)
	case repinned:
		p.changed()
	}
}

// replace ends the process, so that the next call starts the file that is there
// now. That call is not far: listeners to changes ask what changed.
func (p *plugin) replace(old *instance) {
	p.mu.Lock()
	p.replacing = old
	p.mu.Unlock()
	p.host.spawn(func(context.Context) { old.stop() })
}

// permitted returns the checksum of the plugin's file, or why it must not run.
func (p *plugin) permitted() (sum string, err error) {
	f, sum, err := p.openPermitted()
	if err != nil {
		return "", err
	}
	return sum, f.Close()
}

// openPermitted opens the plugin's file and returns its checksum, or why it must not
// run. This open file is started, so that it is what was checked,
// whatever its path has come to mean since.
func (p *plugin) openPermitted() (_ *os.File, sum string, err error) {
	f, err := openGuarded(p.path())
	if err != nil {
		return nil, "", err
	}
	if sum, err = checksum(f); err == nil {
		err = p.host.currentPins().allow(p.file.kind.pinName(p.file.name), p.path(), sum)
	}
	if err != nil {
		return nil, "", errors.Join(err, f.Close())
	}
	return f, sum, nil
}

// path is where the plugin's file is now.
func (p *plugin) path() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file.path
}
