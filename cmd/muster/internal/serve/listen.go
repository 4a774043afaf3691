package serve

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/daemon"
)

// freeAddress has the system choose a port.
const freeAddress = "127.0.0.1:0"

// listen opens the listener that a flag names. Where the flag was not given, and its
// default port is in use, as by another replica on the machine, a free port takes its
// place and is logged.
func listen(s *daemon.Settings, flag, address string, log *zap.Logger) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	inUse := errors.Is(err, syscall.EADDRINUSE)
	if inUse && s.Given != nil && !s.Given(flag) {
		if l, err = net.Listen("tcp", freeAddress); err == nil {
			log.Info("default port is in use; listening on a free one",
				zap.String("flag", "--"+flag), zap.String("default", address), zap.String("address", l.Addr().String()))
			return l, nil
		}
	}
	switch {
	case inUse:
		return nil, fmt.Errorf("--%s: %w; give another port, or port 0 for any that is free", flag, err)
	case err != nil:
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return l, nil
}
