//go:build linux

package tunnel

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	own "github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// watch tells when a link of a namespace has ended: the process that ran it may have died.
type watch struct{ done chan struct{} }

func watchLinks(space *own.Namespace, gone func()) (*watch, error) {
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	handle := netns.NsHandle(space.FD())
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{Namespace: &handle}); err != nil {
		return nil, fmt.Errorf("watch links in %s: %w", space.Path, err)
	}
	go func() {
		for u := range updates {
			if u.Header.Type == unix.RTM_DELLINK {
				gone()
			}
		}
	}()
	return &watch{done}, nil
}

func (w *watch) close() {
	if w != nil {
		close(w.done)
	}
}
