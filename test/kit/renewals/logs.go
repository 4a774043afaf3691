package renewals

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/musterhq/muster/test/kit/process"
	"github.com/musterhq/muster/test/kit/wait"
)

// What the log of a daemon, or a worker, says of certificates.
const (
	saysRenewed           = "certificate is renewed"
	saysNotRenewed        = "the certificate is not renewed"
	saysCallRefused       = "call is refused"
	saysConnectionRefused = "connection is refused"
)

// logTime is how each line of a log begins.
const logTime = "15:04:05.000"

// judge reads from a log how often a certificate was renewed, for which it waits until
// ctx ends, and what else is said that should not be.
func (l *Load) judge(ctx context.Context, name string, p *process.Process, atLeast int) (renewed int, err error) {
	var log string
	late := wait.Until(ctx, func(context.Context) error {
		b, rerr := os.ReadFile(p.Log)
		if err = rerr; err != nil {
			return nil
		}
		log = string(b)
		if renewed = strings.Count(log, saysRenewed); renewed < atLeast {
			return fmt.Errorf("its certificate was renewed %d times, want at least %d", renewed, atLeast)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read log of %s: %w", name, err)
	}
	if late != nil {
		l.wrong(name, late)
	}
	for line := range strings.Lines(log) {
		for _, said := range []string{saysNotRenewed, saysCallRefused, saysConnectionRefused} {
			if strings.Contains(line, said) {
				l.failAt(l.said(line), name, errors.New(strings.TrimSpace(line)))
			}
		}
	}
	return renewed, nil
}

// said returns when a line was written, which says no day: it was since the load began,
// or not long before.
func (l *Load) said(line string) time.Time {
	at, err := time.ParseInLocation(logTime, line[:min(len(line), len(logTime))], time.Local)
	if err != nil {
		// No stall is looked for that it may come of.
		return time.Time{}
	}
	year, month, day := l.began.Date()
	at = at.AddDate(year, int(month)-1, day-1)
	if at.Before(l.began.Add(-time.Hour)) {
		at = at.AddDate(0, 0, 1)
	}
	return at
}
