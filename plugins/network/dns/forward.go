package dns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// maxResolvers is how many of the host's resolvers are asked, as by the C library.
	maxResolvers = 3
	// resolverTime is what one resolver has to answer, and forwardTime what all have. C
	// libraries ask again after five seconds.
	resolverTime = 2 * time.Second
	forwardTime  = 4 * time.Second
	// checkTime is how often the file with the resolvers is looked at.
	checkTime = time.Second
	// preferTime is how long a resolver is asked first because those before it did not
	// answer.
	preferTime = 30 * time.Second
)

var (
	errBusy        = errors.New("too many queries are open")
	errNoResolvers = errors.New("the host has no resolvers")
)

// question is what a forwarded query asks.
type question struct {
	name string
	kind uint16
	// secure asks for signatures, and unchecked for answers that are not verified.
	secure, unchecked bool
}

func keyOf(query *mdns.Msg) question {
	q := query.Question[0]
	opt := query.IsEdns0()
	return question{name: fold(q.Name), kind: q.Qtype, secure: opt != nil && opt.Do(), unchecked: query.CheckingDisabled}
}

// message returns a query of its own for the question: nothing else of the client's
// query goes out.
func (k question) message() *mdns.Msg {
	m := new(mdns.Msg).SetQuestion(k.name, k.kind)
	m.CheckingDisabled = k.unchecked
	return m.SetEdns0(maxUDP, k.secure)
}

// forwarder asks the host's resolvers.
type forwarder struct {
	self  netip.Addr
	file  string
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	slots chan struct{}
	cache *cache
	// flights lets queries for the same question wait for one answer.
	flights singleflight.Group

	mu sync.Mutex
	// resolvers are those of the file when it had the stamp.
	resolvers []string
	stamp     stamp
	checked   time.Time
	// preferred is asked first until the time is over.
	preferred int
	until     time.Time
}

// stamp tells versions of a file apart.
type stamp struct {
	size     int64
	modified time.Time
}

func newForwarder(cfg Config, most int) *forwarder {
	return &forwarder{self: cfg.Self, file: cfg.ResolvConf, dial: cfg.Dial, slots: make(chan struct{}, most), cache: newCache()}
}

// reserve takes a slot for a client's query, and returns what releases it. Each client has
// some slots of its own, so that others cannot take all of them; the rest are shared.
func (f *forwarder) reserve(c *client) (release func(), err error) {
	select {
	case c.reserved <- struct{}{}:
		return func() { <-c.reserved }, nil
	default:
	}
	select {
	case c.forwards <- struct{}{}:
	default:
		return nil, errBusy
	}
	select {
	case f.slots <- struct{}{}:
		return func() { <-f.slots; <-c.forwards }, nil
	default:
		<-c.forwards
		return nil, errBusy
	}
}

// ask returns what the resolvers answer. The message is shared: it must not be changed.
func (f *forwarder) ask(key question) (*mdns.Msg, error) {
	got, err, _ := f.flights.Do(fmt.Sprint(key), func() (any, error) {
		// The context of the first client must not end the query of the others.
		ctx, cancel := context.WithTimeout(context.Background(), forwardTime)
		defer cancel()
		got, err := f.askAll(ctx, key)
		if err == nil {
			f.cache.put(key, got)
		}
		return got, err
	})
	if err != nil {
		return nil, err
	}
	return got.(*mdns.Msg), nil
}

// askAll asks one resolver after the other until one answers the question. If all of them
// answer with an error it returns the last answer.
func (f *forwarder) askAll(ctx context.Context, key question) (*mdns.Msg, error) {
	resolvers, first, err := f.read()
	if err != nil {
		return nil, err
	}
	var last *mdns.Msg
	var errs []error
	for i := range resolvers {
		at := (first + i) % len(resolvers)
		got, err := f.askOne(ctx, resolvers[at], key)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", resolvers[at], err))
			continue
		}
		last = got
		if got.Rcode == mdns.RcodeSuccess || got.Rcode == mdns.RcodeNameError {
			if i > 0 {
				f.prefer(at)
			}
			return got, nil
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(errs...)
}

// askOne asks over UDP, and over TCP if the answer is truncated.
func (f *forwarder) askOne(ctx context.Context, resolver string, key question) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, resolverTime)
	defer cancel()
	got, err := f.exchange(ctx, "udp", resolver, key)
	if err == nil && got.Truncated {
		// If TCP fails, the truncated answer is better than none.
		if whole, err := f.exchange(ctx, "tcp", resolver, key); err == nil {
			return whole, nil
		}
	}
	return got, err
}

func (f *forwarder) exchange(ctx context.Context, network, resolver string, key question) (*mdns.Msg, error) {
	conn, err := f.dial(ctx, network, resolver)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	query := key.message()
	client := &mdns.Client{Net: network, UDPSize: maxUDP, Timeout: resolverTime}
	got, _, err := client.ExchangeWithConnContext(ctx, query, &mdns.Conn{Conn: conn})
	if err != nil {
		return nil, err
	}
	if !got.Response || len(got.Question) != 1 || fold(got.Question[0].Name) != key.name || got.Question[0].Qtype != key.kind {
		return nil, errors.New("the response is not to the query")
	}
	return got, nil
}

func (f *forwarder) prefer(resolver int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.preferred, f.until = resolver, time.Now().Add(preferTime)
}

// read returns the resolvers, and which of them to ask first.
func (f *forwarder) read() (resolvers []string, first int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.checked.IsZero() || now.Sub(f.checked) >= checkTime {
		f.checked = now
		if err := f.reload(); err != nil && len(f.resolvers) == 0 {
			return nil, 0, err
		}
	}
	if len(f.resolvers) == 0 {
		return nil, 0, errNoResolvers
	}
	if now.Before(f.until) {
		first = f.preferred % len(f.resolvers)
	}
	return f.resolvers, first, nil
}

// reload reads the file if it has changed. What cannot be read stays as it was.
func (f *forwarder) reload() error {
	info, err := os.Stat(f.file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errNoResolvers, err)
		}
		return err
	}
	now := stamp{info.Size(), info.ModTime()}
	if now == f.stamp {
		return nil
	}
	config, err := mdns.ClientConfigFromFile(f.file)
	if err != nil {
		return fmt.Errorf("read the host's resolvers: %w", err)
	}
	var resolvers []string
	for _, server := range config.Servers {
		address, err := netip.ParseAddr(strings.TrimSpace(server))
		// Forwarding to this server itself would never end.
		if err != nil || address.WithZone("") == f.self || len(resolvers) == maxResolvers {
			continue
		}
		resolvers = append(resolvers, net.JoinHostPort(address.String(), config.Port))
	}
	f.stamp, f.resolvers, f.preferred, f.until = now, resolvers, 0, time.Time{}
	return nil
}
