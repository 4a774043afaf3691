package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// headerTimeout bounds the TLS handshake, and then the headers of a request.
	headerTimeout = 10 * time.Second
	// requestTimeout bounds a whole request, its body included.
	requestTimeout = 30 * time.Second
	// unreadTimeout bounds the wait for a body that the handler has not read, for example
	// of a refused request.
	unreadTimeout = 5 * time.Second
	// writeTimeout bounds how long a client takes to accept maxWrite bytes of an answer.
	writeTimeout = 30 * time.Second
	maxWrite     = 64 << 10
	// waitTimeout is how long a connection may be idle between requests.
	waitTimeout = 2 * time.Minute
)

// ServeHTTP serves until ctx ends, then lets requests end within the grace time and closes
// the others. No client can hold a connection without sending a request or accepting its
// answer. The handler bounds its own time.
func ServeHTTP(ctx context.Context, handler http.Handler, listener net.Listener, grace time.Duration) error {
	server := &http.Server{
		Handler:           paced(handler),
		ReadHeaderTimeout: headerTimeout,
		// This deadline ends with the request's body. Streams may last longer.
		ReadTimeout:    requestTimeout,
		IdleTimeout:    waitTimeout,
		MaxHeaderBytes: maxHeader,
		// Requests that are open when ctx ends may finish. The daemon that streams (watch,
		// logs) belong to ends them.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		if err := server.Close(); err != nil {
			return fmt.Errorf("close HTTP server: %w", err)
		}
	}
	if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// paced bounds how long a client takes to accept an answer, and how long the server waits
// for the rest of the request after the answer. [http.Server.WriteTimeout] would bound the
// handler as well.
func paced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &pacedWriter{ResponseWriter: w, control: http.NewResponseController(w)}
		if r.ContentLength != 0 && r.Body != nil {
			p.body = &watchedBody{ReadCloser: r.Body}
			// The server looks at the body of its own request afterwards.
			r = r.WithContext(r.Context())
			r.Body = p.body
		}
		next.ServeHTTP(p, r)
		p.begin()
		// The server now sends the rest.
		p.extend()
	})
}

// watchedBody is a request's body that knows whether more of it may follow.
type watchedBody struct {
	io.ReadCloser
	ended bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.ended = true
	}
	return n, err
}

// pacedWriter writes an answer.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	// body is the request's body, or nil.
	body  *watchedBody
	begun bool
}

// Unwrap lets [http.ResponseController] reach the server's own writer.
func (p *pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// begin is called before an answer begins. A server reads what is left of the request
// before it sends one.
func (p *pacedWriter) begin() {
	if p.begun {
		return
	}
	p.begun = true
	if p.body != nil && !p.body.ended {
		_ = p.control.SetReadDeadline(time.Now().Add(unreadTimeout))
	}
}

func (p *pacedWriter) extend() { _ = p.control.SetWriteDeadline(time.Now().Add(writeTimeout)) }

func (p *pacedWriter) WriteHeader(code int) {
	p.begin()
	p.extend()
	p.ResponseWriter.WriteHeader(code)
}

// Write writes in pieces, each with its own deadline: a large answer may take long where
// the network is slow.
func (p *pacedWriter) Write(b []byte) (written int, err error) {
	p.begin()
	for {
		p.extend()
		n, err := p.ResponseWriter.Write(b[:min(len(b), maxWrite)])
		written += n
		if b = b[n:]; err != nil || len(b) == 0 {
			return written, err
		}
	}
}
