package security_test

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cav1 "github.com/musterhq/muster/api/muster/ca/v1"
)

// TestClusterKey replaces the key that the authority is sealed with, under two apids
// with files of their own. Nodes join at both of them all the while.
func TestClusterKey(t *testing.T) {
	c := start(t)
	free := freeAddresses(t, 2)
	first, second := filepath.Join(c.dir, "cluster.key"), filepath.Join(c.dir, "cluster-2.key")
	write := func(path string, keys ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Join(keys, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := strings.TrimSpace(string(c.file("cluster.key")))
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	after := base64.StdEncoding.EncodeToString(secret)
	write(second, before)
	c.daemon("apid-2", append(c.apid, "--cluster-key-file", second, "--listen", c.second, "--rest-listen", free[0], "--ops-listen", free[1])...)
	if out, err := c.muster(t, c.admin, "login", c.api, "--ca-file", filepath.Join(c.dir, "ca.pem")); err != nil {
		t.Fatalf("login: %v\n%s", err, out)
	}
	said := ""
	c.eventually("both apids say which keys they have", func() bool {
		out, err := c.muster(t, "", "cluster", "key", "status")
		said = out
		return err == nil && strings.Count(out, "  apid ") == 2 && !strings.Contains(out, "not known")
	})
	sealedWith := func() string {
		_, rest, _ := strings.Cut(said, "Sealed with:  ")
		name, _, _ := strings.Cut(rest, "\n")
		return name
	}
	was := sealedWith()
	worker, nodes := strings.TrimSpace(string(c.file("worker.token"))), 0
	join := func() {
		t.Helper()
		for _, address := range []string{c.api, c.second} {
			nodes++
			_, r := request(t)
			resp, err := cav1.NewAuthorityServiceClient(c.dial(address, nil)).Join(c.with(c.admin), &cav1.JoinRequest{Token: worker, Request: r, Name: fmt.Sprint("k", nodes)})
			if err != nil || len(resp.Certificate) == 0 {
				t.Errorf("join %d, at %s: %v", nodes, address, err)
			}
		}
	}
	join()
	write(first, after, before)
	join()
	if out, err := c.muster(t, "", "cluster", "key", "reseal"); err == nil || !strings.Contains(out, c.second) {
		t.Errorf("with a key that an apid does not have: %v\n%s", err, out)
	}
	join()
	write(second, after, before)
	out, err := c.muster(t, "", "cluster", "key", "reseal")
	if said = out; err != nil || !strings.Contains(out, "may go") || sealedWith() == was {
		t.Fatalf("reseal: %v\n%s", err, out)
	}
	now := sealedWith()
	join()
	write(first, after)
	join()
	write(second, after)
	join()
	if said, err = c.muster(t, "", "cluster", "key", "reseal"); err != nil || sealedWith() != now || strings.Contains(said, "may go") || strings.Contains(said, was) {
		t.Errorf("with the new key alone: %v\n%s", err, said)
	}
	c.logged("apid", "sealed with another key", now, was, `"by":"admin admin"`)
}
