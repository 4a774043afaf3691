package daemon_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/internal/daemon"
)

// serveBounded serves health until the test ends.
func serveBounded(t *testing.T) *bufconn.Listener {
	t.Helper()
	server, _ := daemon.NewServer(insecure.NewCredentials())
	return serveInMemory(t, server)
}

func serveInMemory(t *testing.T, server *grpc.Server) *bufconn.Listener {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeGRPC(ctx, server, l, time.Millisecond) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

// attacker speaks HTTP/2 as no library does.
type attacker struct {
	t      *testing.T
	framer *http2.Framer
	block  bytes.Buffer
	packer *hpack.Encoder
	// frames are those that came; it is closed when the connection is.
	frames chan http2.Frame
	// answers says that pings are answered.
	answers atomic.Bool
}

func attack(t *testing.T, l *bufconn.Listener) *attacker {
	t.Helper()
	conn, err := l.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := &attacker{t: t, framer: http2.NewFramer(conn, conn), frames: make(chan http2.Frame, 100_000)}
	a.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	a.framer.SetReuseFrames()
	a.packer = hpack.NewEncoder(&a.block)
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	a.must(a.framer.WriteSettings())
	a.must(a.framer.WriteWindowUpdate(0, 1<<24))
	pings := http2.NewFramer(conn, nil)
	go func() {
		defer close(done)
		defer close(a.frames)
		for {
			f, err := a.framer.ReadFrame()
			if err != nil {
				return
			}
			switch f := f.(type) {
			case *http2.PingFrame:
				if a.answers.Load() && !f.IsAck() {
					a.must(pings.WritePing(true, f.Data))
				}
			case *http2.RSTStreamFrame:
				a.frames <- &http2.RSTStreamFrame{FrameHeader: f.FrameHeader, ErrCode: f.ErrCode}
			case *http2.GoAwayFrame:
				a.frames <- &http2.GoAwayFrame{FrameHeader: f.FrameHeader, ErrCode: f.ErrCode}
			case *http2.MetaHeadersFrame:
				a.frames <- &http2.MetaHeadersFrame{HeadersFrame: &http2.HeadersFrame{FrameHeader: f.Header()}, Fields: f.Fields}
			}
		}
	}()
	return a
}

// acknowledge has pings answered from now on.
func (a *attacker) acknowledge() { a.answers.Store(true) }

// must takes the end of the connection for no fault: what came before it counts.
func (a *attacker) must(err error) {
	a.t.Helper()
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		a.t.Fatal(err)
	}
}

// call opens a stream with a method's headers and further ones, and sends a message
// if there is one.
func (a *attacker) call(stream uint32, method string, message []byte, more ...hpack.HeaderField) {
	a.t.Helper()
	a.begin(stream, method, more...)
	const frame = 16 << 10
	for last := message == nil; !last; {
		next := message[:min(len(message), frame)]
		message = message[len(next):]
		last = len(message) == 0
		a.must(a.framer.WriteData(stream, last, next))
	}
}

// begin opens a stream, and sends nothing more than headers.
func (a *attacker) begin(stream uint32, method string, more ...hpack.HeaderField) {
	a.t.Helper()
	a.block.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method}, {Name: ":authority", Value: "a"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		a.must(a.packer.WriteField(f))
	}
	const frame = 16 << 10
	rest := bytes.Clone(a.block.Bytes())
	first := rest[:min(len(rest), frame)]
	rest = rest[len(first):]
	a.must(a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndHeaders: len(rest) == 0}))
	for len(rest) > 0 {
		next := rest[:min(len(rest), frame)]
		rest = rest[len(next):]
		a.must(a.framer.WriteContinuation(stream, len(rest) == 0, next))
	}
}

// until reads frames until one is wanted.
func (a *attacker) until(what string, wanted func(http2.Frame) bool) {
	a.t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case f, ok := <-a.frames:
			if !ok {
				a.t.Fatalf("the connection ended without %s", what)
			}
			if wanted(f) {
				return
			}
		case <-late:
			a.t.Fatalf("there is no %s", what)
		}
	}
}

// message frames one for gRPC.
func message(packed bool, body []byte) []byte {
	head := make([]byte, 5)
	if packed {
		head[0] = 1
	}
	binary.BigEndian.PutUint32(head[1:], uint32(len(body)))
	return append(head, body...)
}

func reset(stream uint32, code http2.ErrCode) func(http2.Frame) bool {
	return func(f http2.Frame) bool {
		r, ok := f.(*http2.RSTStreamFrame)
		return ok && r.StreamID == stream && r.ErrCode == code
	}
}

// trailer is the end of a call with a code of gRPC's.
func trailer(stream uint32, code codes.Code) func(http2.Frame) bool {
	return func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		if !ok || h.Header().StreamID != stream {
			return false
		}
		for _, field := range h.Fields {
			if field.Name == "grpc-status" {
				return field.Value == codeText(code)
			}
		}
		return false
	}
}

func codeText(c codes.Code) string { return strconv.Itoa(int(c)) }

// TestHeadersAreBounded: also those that are small until they are unpacked.
func TestHeadersAreBounded(t *testing.T) {
	l := serveBounded(t)
	for name, more := range map[string][]hpack.HeaderField{
		"one that is large":          {{Name: "x", Value: strings.Repeat("a~", 60_000)}},
		"many that are small":        manyHeaders(3000, "0123456789"),
		"small until it is unpacked": manyHeaders(1000, strings.Repeat("a", 3000)),
	} {
		t.Run(name, func(t *testing.T) {
			a := attack(t, l)
			a.call(1, healthpb.Health_Check_FullMethodName, message(false, nil), more...)
			// A name or value that is too large in itself ends the connection.
			for f := range a.frames {
				if h, ok := f.(*http2.MetaHeadersFrame); ok {
					t.Errorf("there is an answer: %v", h.Fields)
				}
				if r, ok := f.(*http2.RSTStreamFrame); ok && r.StreamID == 1 {
					break
				}
			}
		})
	}
	a := attack(t, l)
	a.call(1, healthpb.Health_Check_FullMethodName, message(false, nil), hpack.HeaderField{Name: "x", Value: strings.Repeat("a", 30_000)})
	a.until("answer", trailer(1, codes.OK))
}

// manyHeaders are alike, so each but the first takes a byte until it is unpacked.
func manyHeaders(n int, value string) []hpack.HeaderField {
	all := make([]hpack.HeaderField, n)
	for i := range all {
		all[i] = hpack.HeaderField{Name: "x", Value: value}
	}
	return all
}

// TestMessagesAreBounded: also those that are small until they are unpacked.
func TestMessagesAreBounded(t *testing.T) {
	l := serveBounded(t)
	zeros, err := proto.Marshal(&healthpb.HealthCheckRequest{Service: strings.Repeat("\x00", 8<<20)})
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(zeros); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a := attack(t, l)
	a.call(1, healthpb.Health_Check_FullMethodName, message(true, packed.Bytes()), hpack.HeaderField{Name: "grpc-encoding", Value: "gzip"})
	a.until("refusal of a message of 8 MiB, packed", trailer(1, codes.ResourceExhausted))
	// What it says of itself is refused before it comes.
	a.call(3, healthpb.Health_Check_FullMethodName, []byte{0, 0xff, 0xff, 0xff, 0xff})
	a.until("refusal of a message of 4 GiB", trailer(3, codes.ResourceExhausted))

	conn, err := grpc.NewClient("passthrough:///b", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for size, want := range map[int]codes.Code{daemon.MaxMessage - 100: codes.NotFound, daemon.MaxMessage + 1: codes.ResourceExhausted} {
		_, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: strings.Repeat("a", size)})
		if status.Code(err) != want {
			t.Errorf("a message of %d bytes: %v, want %v", size, err, want)
		}
	}
}

// TestStreamsAreBounded opens more calls on one connection than it may have, and
// leaves them open.
func TestStreamsAreBounded(t *testing.T) {
	l := serveBounded(t)
	a := attack(t, l)
	const most, more = 10_000, 20
	for i := range uint32(most + more) {
		a.call(2*i+1, healthpb.Health_Watch_FullMethodName, message(false, nil))
	}
	for i := range uint32(more) {
		a.until("refusal of one stream too many", reset(2*(most+i)+1, http2.ErrCodeRefusedStream))
	}
	// Another client is served meanwhile.
	b := attack(t, l)
	b.call(1, healthpb.Health_Check_FullMethodName, message(false, nil))
	b.until("answer", trailer(1, codes.OK))
}

// TestPingsAreBounded: who only pings is shown the door.
func TestPingsAreBounded(t *testing.T) {
	a := attack(t, serveBounded(t))
	for i := range 10 {
		if a.framer.WritePing(false, [8]byte{byte(i)}) != nil {
			break
		}
	}
	a.until("end of the connection", func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		return ok && g.ErrCode == http2.ErrCodeEnhanceYourCalm
	})
}

// TestWhoSaysNothing is not waited for for long, by either server.
func TestWhoSaysNothing(t *testing.T) {
	servers := map[string]func(context.Context, net.Listener) error{
		"gRPC": func(ctx context.Context, l net.Listener) error {
			server, _ := daemon.NewServer(insecure.NewCredentials())
			return daemon.ServeGRPC(ctx, server, l, time.Second)
		},
		"HTTP": func(ctx context.Context, l net.Listener) error {
			return daemon.ServeHTTP(ctx, http.NotFoundHandler(), l, time.Second)
		},
	}
	for name, serve := range servers {
		for said, text := range map[string]string{"nothing": "", "half a word": "GET / HT"} {
			t.Run(name+", "+said, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := bufconn.Listen(1 << 10)
					ctx, cancel := context.WithCancel(t.Context())
					ended := make(chan error, 1)
					go func() { ended <- serve(ctx, l) }()
					conn, err := l.DialContext(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.WriteString(conn, text); err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					if _, err := io.Copy(io.Discard, conn); err != nil {
						t.Log(err)
					}
					if took := time.Since(began); took > 30*time.Second {
						t.Errorf("it was waited for for %v", took)
					}
					_ = conn.Close()
					cancel()
					if err := <-ended; err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// TestHeadersOfHTTPAreBounded: those of REST and operations.
func TestHeadersOfHTTPAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemon.ServeHTTP(ctx, http.NotFoundHandler(), l, time.Second) }()
	for size, want := range map[int]int{60 << 10: http.StatusNotFound, 80 << 10: http.StatusRequestHeaderFieldsTooLarge} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X", strings.Repeat("a", size))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("headers of %d bytes: status %d, want %d", size, resp.StatusCode, want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
