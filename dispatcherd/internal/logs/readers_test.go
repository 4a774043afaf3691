package logs

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// One client takes all readers of a node, through two replicas of apid. Other
// clients still get what they ask for, up to an equal share. The remaining readers
// read to the end.
func TestReadersAreSharedAmongClients(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		readers, nodes, greedy, share int
		bound                         string
	}{
		"of one node":       {readers: 8192, nodes: 1, greedy: maxSubscriptions, share: maxSubscriptions / 2, bound: "node n1 serves 256 log readers"},
		"of the dispatcher": {readers: 40, nodes: 3, greedy: 40, share: 20, bound: "the dispatcher serves 40 log readers, the most that it may (--log-readers of dispatcherd)"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				site := newSite(t, 1<<20, tt.readers)
				var workers []*worker
				for i := range tt.nodes {
					workers = append(workers, site.worker(fmt.Sprintf("n%d", i+1)))
				}
				replicas := []*grpc.ClientConn{site.dial(), site.dial()}
				open := map[string][]reader{}
				read := func(client string, n int) {
					for i := range n {
						s, _ := subscribe(t, client, replicas[i%2], workers[i%tt.nodes].node, "t1")
						open[client] = append(open[client], s)
					}
				}
				read("viewer greedy", tt.greedy+50)
				read("viewer ada", 1)
				read("viewer bob", tt.greedy)
				read("viewer greedy", 10)

				synctest.Wait()
				for _, w := range workers {
					for _, r := range w.asked() {
						w.log(r.SubscriptionId, true, line("t1", "all"))
					}
				}
				synctest.Wait()
				served := map[string]int{}
				for client, streams := range open {
					for _, s := range streams {
						m, err := s.Recv()
						if err == nil && len(m.Messages) == 1 {
							if _, err = s.Recv(); errors.Is(err, io.EOF) {
								served[client]++
								continue
							}
						}
						want := fmt.Sprintf("%s; %s has its share of them", tt.bound, client)
						if got := status.Convert(err); got.Code() != codes.ResourceExhausted || !containsAll(got.Message(), tt.bound, client+" has its share of them") {
							t.Fatalf("%s was refused with %v, want %s", client, err, want)
						}
					}
				}
				if served["viewer ada"] != 1 {
					t.Error("a client with one reader was not served")
				}
				for _, client := range []string{"viewer greedy", "viewer bob"} {
					if n := served[client]; n < tt.share-2 || n > tt.share+1 {
						t.Errorf("%s has %d readers, want about %d", client, n, tt.share)
					}
				}
				if r := site.broker.readers; r.all.size != 0 || len(r.nodes) != 0 {
					t.Errorf("%d readers are counted after all have ended", r.all.size)
				}
				for _, conn := range replicas {
					_ = conn.Close()
				}
			})
		})
	}
}

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}
