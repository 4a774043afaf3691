package ca

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
)

// FuzzParseJoinToken: what is read as a token is one, written as tokens are.
func FuzzParseJoinToken(f *testing.F) {
	good := joinToken([]byte("certificate"), newSecret())
	for _, s := range []string{good, good + "-x", strings.ToLower(good), good[:40], joinPrefix, "", joinPrefix + strings.Repeat("0", 64) + "-", good + "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		digest, secret, err := parseJoinToken(s)
		if err != nil {
			return
		}
		if secret == "" || len(s) > 256 || !strings.HasSuffix(s, "-"+secret) || digest == [sha256.Size]byte{} && !strings.Contains(s, strings.Repeat("0", 64)) {
			t.Errorf("%q is read as %x and %q", s, digest, secret)
		}
	})
}

// FuzzVouched: of whatever an apid, or an impostor in its place, answers, nothing is
// taken but what the token's digest names.
func FuzzVouched(f *testing.F) {
	one := certificatePEM([]byte("one"))
	f.Add(one)
	f.Add(append(certificatePEM([]byte("two")), one...))
	f.Add(append([]byte("-----BEGIN CERTIFICATE-----\n"), one...))
	f.Add([]byte("-----BEGIN X-----\na: b\n\nb25l\n-----END X-----\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if got := vouched(answer, sha256.Sum256([]byte("one"))); got != nil && !bytes.Equal(got, one) {
			t.Errorf("%q vouches for %q", answer, got)
		}
	})
}
