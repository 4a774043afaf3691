//go:build linux

package resident

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/durable"
)

// The messages of a handover. The process that runs sends the sockets of each network,
// then allSent; the new one sends taken once it answers at them. If the new one fails
// before that, the old one continues.
const (
	allSent = "all"
	taken   = "taken"
)

// handoverTime bounds a handover.
const handoverTime = 10 * time.Second

// handOver gives the sockets to a new process, and reports whether it took them.
func (s *service) handOver(conn *net.UnixConn) error {
	if err := conn.SetDeadline(time.Now().Add(handoverTime)); err != nil {
		return err
	}
	s.mu.Lock()
	// What the plugin says meanwhile would be lost.
	defer s.mu.Unlock()
	for id, l := range s.networks {
		if l == nil {
			continue
		}
		if err := durable.Send(conn, l.name(id), l.udp, l.tcp); err != nil {
			return err
		}
	}
	if err := durable.Send(conn, allSent); err != nil {
		return err
	}
	answer, _, err := durable.Receive(conn)
	if err == nil && answer != taken {
		err = fmt.Errorf("unexpected message %.20q", answer)
	}
	return err
}

// takeOver gets the sockets of the process that runs, if one does. The caller says when it
// answers at them.
func takeOver(ctx context.Context, dir string) (got map[string]*sockets, confirm func() error, err error) {
	conn, err := durable.Dial(ctx, dir, handoverSocket, "unixpacket")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, func() error { return nil }, nil
	}
	if err != nil {
		return nil, nil, err
	}
	got = make(map[string]*sockets)
	fail := func(err error) (map[string]*sockets, func() error, error) {
		for _, s := range got {
			s.close()
		}
		return nil, nil, errors.Join(fmt.Errorf("take over sockets: %w", err), conn.Close())
	}
	if err := conn.SetDeadline(time.Now().Add(handoverTime)); err != nil {
		return fail(err)
	}
	for {
		name, files, err := durable.Receive(conn)
		if err != nil {
			return fail(errors.Join(err, closeAll(files)))
		}
		if name == allSent {
			break
		}
		network, s, err := readSockets(name, files)
		if err = errors.Join(err, closeAll(files)); err != nil {
			return fail(err)
		}
		got[network] = s
	}
	return got, func() error {
		err := durable.Send(conn, taken)
		if err == nil {
			// The other process closes the connection when it no longer answers.
			if _, _, ended := durable.Receive(conn); !errors.Is(ended, io.EOF) {
				err = ended
			}
		}
		return errors.Join(err, conn.Close())
	}, nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func readSockets(name string, files []*os.File) (network string, s *sockets, err error) {
	s = &sockets{}
	if _, err := fmt.Sscanf(name, "%s %d %d", &network, &s.device, &s.inode); err != nil || len(files) != 2 {
		return "", nil, fmt.Errorf("%d sockets of %.100q: want two of a network", len(files), name)
	}
	packets, err := net.FilePacketConn(files[0])
	if err != nil {
		return "", nil, err
	}
	listener, err := net.FileListener(files[1])
	if err != nil {
		return "", nil, errors.Join(err, packets.Close())
	}
	var isUDP, isTCP bool
	s.udp, isUDP = packets.(*net.UDPConn)
	s.tcp, isTCP = listener.(*net.TCPListener)
	if !isUDP || !isTCP {
		return "", nil, errors.Join(fmt.Errorf("the sockets of %.100q are of the wrong kind", name), packets.Close(), listener.Close())
	}
	return network, s, nil
}
