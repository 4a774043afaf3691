package serve

import (
	"context"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// notifier tells the service manager that started this process how far it is, if
// it is one that asked (systemd, with Type=notify).
type notifier struct{ log *zap.Logger }

// ready says that the process does its work.
func (n notifier) ready() { n.say(systemd.SdNotifyReady) }

// stops says that the process is about to end, once ctx ends. What it returns must
// be called.
func (n notifier) stops(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, func() { n.say(systemd.SdNotifyStopping) })
}

func (n notifier) say(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		n.log.Warn("failed to notify the service manager", zap.String("state", state), zap.Error(err))
	}
}
