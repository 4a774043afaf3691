package serve

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestThisMachineOnly(t *testing.T) {
	handler := thisMachineOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for host, want := range map[string]int{
		"127.0.0.1:7780": http.StatusOK, "localhost": http.StatusOK, "localhost:7780": http.StatusOK, "[::1]:7780": http.StatusOK, "[::1]": http.StatusOK,
		"rebound.example:7780": http.StatusForbidden, "rebound.example": http.StatusForbidden, "127.0.0.1.rebound.example": http.StatusForbidden,
		"10.0.0.1:7780": http.StatusForbidden, "": http.StatusForbidden,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/services", nil)
		r.Host = host
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("a request for host %q got %d; want %d", host, w.Code, want)
		}
	}
}
