# Homebrew formula. Untested: written without a Mac at hand (docs/mlx.md); the addresses are placeholders.
class MlxServe < Formula
  desc "Native server for MLX-format language models"
  homepage "https://example.org/mlx-serve"
  head "https://example.org/mlx-serve.git", branch: "main"
  license "MIT"

  depends_on "cmake" => :build
  depends_on "ninja" => :build
  depends_on "pkgconf" => :build
  depends_on "libmicrohttpd"
  depends_on "pcre2"
  depends_on "utf8proc"
  on_macos do
    depends_on "mlx-c" if Hardware::CPU.arm?
  end

  def install
    system "cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DMLX_SERVE_TESTS=OFF", *std_cmake_args
    system "cmake", "--build", "build"
    system "cmake", "--install", "build"
  end

  test do
    assert_match "usage: mlx-serve", shell_output("#{bin}/mlx-serve --help")
  end
end
