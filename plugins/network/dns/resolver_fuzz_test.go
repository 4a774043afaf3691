package dns_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"

	mdns "github.com/miekg/dns"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/dns"
)

// A resolver may answer anything: the task gets a valid response that fits.
func FuzzResolverAnswer(f *testing.F) {
	for _, m := range []*mdns.Msg{
		reply(query("example.com", mdns.TypeA), 60, "198.51.100.1"),
		new(mdns.Msg).SetRcode(query("example.com", mdns.TypeA), mdns.RcodeNameError),
		reply(query("other.example", mdns.TypeA), 60, "198.51.100.1"),
	} {
		raw, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, 512)
	}
	f.Add([]byte{}, 512)
	f.Fuzz(func(t *testing.T, raw []byte, size int) {
		size = mdns.MinMsgSize + size&1023
		if len(raw) > mdns.MaxMsgSize {
			raw = raw[:mdns.MaxMsgSize]
		}
		file := filepath.Join(t.TempDir(), "resolv.conf")
		write(t, file, "192.0.2.53")
		s := dns.New(dns.Config{ResolvConf: file, Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go answerWith(theirs, raw)
			return ours, nil
		}})
		s.Apply(world())
		s.Attach(attachment("t9", "s9", &networkv1.Attachment{NetworkId: "n1", Addresses: []string{asker.String()}}))
		response := s.Respond("n1", asker, query("example.com", mdns.TypeA), size)
		packed, err := response.Pack()
		if err != nil || len(packed) > size {
			t.Errorf("a response of %d bytes, %d are allowed: %v", len(packed), size, err)
		}
	})
}

// answerWith answers a query over a stream with a message that has the query's id.
func answerWith(conn net.Conn, raw []byte) {
	defer func() { _ = conn.Close() }()
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return
	}
	asked := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, asked); err != nil {
		return
	}
	answer := append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
	if len(raw) >= 2 && len(asked) >= 2 {
		copy(answer[2:], asked[:2])
	}
	_, _ = conn.Write(answer)
}
