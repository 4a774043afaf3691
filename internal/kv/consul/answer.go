package consul

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"github.com/go-json-experiment/json"
)

// answer is how a call was answered, as far as the client does not tell: the
// status, because the client leaves it out of the errors of transactions; and what
// a transaction or a list found, because the client takes six times as long to
// decode that, which was a tenth of all that a manager computed.
type answer struct {
	status int
	body   []byte
}

// decode decodes what was found, as the client would.
func (a *answer) decode(into any) error { return json.Unmarshal(a.body, into) }

type answerKey struct{}

// takeAnswer returns a context for one call whose answer is kept. The client
// gets an empty one of the same kind.
func takeAnswer(ctx context.Context) (context.Context, *answer) {
	a := &answer{}
	return context.WithValue(ctx, answerKey{}, a), a
}

// answerTaker takes answers where the call's context asks for it.
type answerTaker struct{ http.RoundTripper }

func (t answerTaker) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	a, ok := req.Context().Value(answerKey{}).(*answer)
	if !ok || err != nil {
		return resp, err
	}
	a.status = resp.StatusCode
	if a.status != http.StatusOK && a.status != http.StatusConflict {
		return resp, nil
	}
	body, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	a.body = body
	empty := "[]"
	if bytes.HasPrefix(body, []byte("{")) {
		empty = "{}"
	}
	resp.Body = io.NopCloser(bytes.NewReader([]byte(empty)))
	return resp, nil
}
