// Reads a folder that `mmjepa_export --format cpp` wrote, and computes the logits of its language head.
//
//     mmjepa::LanguageModel model{mmjepa::Export("folder")};
//     std::vector<float> logits = model.logits({72, 105});  // one row of model.vocab_size() numbers for each id
//
// One header, C++17, no library but the standard one. Whatever is wrong with a folder is an mmjepa::Error that says
// which file, what was found and what was expected. Nothing outside the folder is read, nothing is allocated before
// the size of the file agrees with the shape that is claimed for it, and no number is used before its checksum fits.
#ifndef MMJEPA_READER_HPP
#define MMJEPA_READER_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <locale>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mmjepa {

static_assert(sizeof(float) == 4 && std::numeric_limits<float>::is_iec559, "the export holds 32-bit IEEE numbers");

class Error : public std::runtime_error {
public:
    explicit Error(const std::string& message) : std::runtime_error(printable(message)) {}

private:
    static std::string printable(std::string text) {  // it may quote what a stranger wrote
        for (char& c : text)
            if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
        return text;
    }
};

// ---------------------------------------------------------------- SHA-256 (FIPS 180-4)

class Sha256 {
public:
    void update(const unsigned char* bytes, std::size_t count) {
        total_ += count;
        while (count > 0) {
            const std::size_t n = std::min(count, block_.size() - used_);
            std::memcpy(block_.data() + used_, bytes, n);
            used_ += n, bytes += n, count -= n;
            if (used_ == block_.size()) mix(), used_ = 0;
        }
    }

    std::string hex() {
        const std::uint64_t bits = 8 * total_;
        const unsigned char one = 0x80, zero = 0;
        update(&one, 1);
        while (used_ != 56) update(&zero, 1);
        for (int shift = 56; shift >= 0; shift -= 8) {
            const auto byte = static_cast<unsigned char>(bits >> shift);
            update(&byte, 1);
        }
        std::string out;
        for (std::uint32_t word : state_)
            for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[(word >> shift) & 15u];
        return out;
    }

private:
    std::array<std::uint32_t, 8> state_{0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                        0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    std::array<unsigned char, 64> block_{};
    std::size_t used_ = 0;
    std::uint64_t total_ = 0;

    static std::uint32_t turn(std::uint32_t x, int n) { return x >> n | x << (32 - n); }

    void mix() {
        static constexpr std::array<std::uint32_t, 64> k{
            0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
            0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
            0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
            0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
            0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
            0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
            0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
            0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};
        std::array<std::uint32_t, 64> w{};
        for (std::size_t i = 0; i < 16; ++i)
            for (std::size_t j = 0; j < 4; ++j) w[i] = w[i] << 8 | block_[4 * i + j];
        for (std::size_t i = 16; i < 64; ++i)
            w[i] = w[i - 16] + w[i - 7] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3)
                 + (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
        std::array<std::uint32_t, 8> s = state_;
        for (std::size_t i = 0; i < 64; ++i) {
            const std::uint32_t e = s[4], a = s[0];
            const std::uint32_t t1 = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
            const std::uint32_t t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
            s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
        }
        for (std::size_t i = 0; i < 8; ++i) state_[i] += s[i];
    }
};

// ---------------------------------------------------------------- JSON (RFC 8259), as strict as its writer

struct Json {
    enum class Kind { null, boolean, number, string, array, object };
    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::string string;
    std::vector<Json> items;                   // of an array; of an object its values
    std::map<std::string, std::size_t> index;  // of an object: name to place in `items`
};

class JsonParser {
public:
    static constexpr int max_depth = 32;
    static constexpr std::size_t max_values = 1u << 20;

    static Json parse(const std::string& text, const std::string& file) {
        JsonParser parser(text, file);
        Json value = parser.value(0);
        parser.space();
        if (parser.at_ != text.size()) parser.fail("more text after the end");
        return value;
    }

private:
    const std::string& text_;
    const std::string& file_;
    std::size_t at_ = 0, values_ = 0;

    JsonParser(const std::string& text, const std::string& file) : text_(text), file_(file) {}

    [[noreturn]] void fail(const std::string& what) const {
        throw Error(file_ + ": not valid JSON at byte " + std::to_string(at_) + ": " + what);
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    bool skip(char c) { return peek() == c && at_ < text_.size() ? (++at_, true) : false; }
    void expect(char c) { if (!skip(c)) fail(std::string("expected '") + c + "'"); }
    void space() { while (at_ < text_.size() && std::strchr(" \t\r\n", peek()) && peek() != '\0') ++at_; }
    void word(const char* letters) { for (; *letters; ++letters) expect(*letters); }

    Json value(int depth) {
        if (++values_ > max_values) fail("more than " + std::to_string(max_values) + " values");
        space();
        Json out;
        switch (peek()) {
            case '{': object(out, depth); break;
            case '[': array(out, depth); break;
            case '"': out.kind = Json::Kind::string, out.string = quoted(); break;
            case 't': word("true"), out.kind = Json::Kind::boolean, out.boolean = true; break;
            case 'f': word("false"), out.kind = Json::Kind::boolean; break;
            case 'n': word("null"); break;
            default: out.kind = Json::Kind::number, out.number = numeral();
        }
        return out;
    }

    void array(Json& out, int depth) {
        out.kind = Json::Kind::array;
        if (depth >= max_depth) fail("nested deeper than " + std::to_string(max_depth));
        expect('['), space();
        if (skip(']')) return;
        do out.items.push_back(value(depth + 1)), space(); while (skip(','));
        expect(']');
    }

    void object(Json& out, int depth) {
        out.kind = Json::Kind::object;
        if (depth >= max_depth) fail("nested deeper than " + std::to_string(max_depth));
        expect('{'), space();
        if (skip('}')) return;
        do {
            space();
            std::string name = quoted();
            if (!out.index.emplace(name, out.items.size()).second) fail("the name '" + name + "' is there twice");
            space(), expect(':');
            out.items.push_back(value(depth + 1));
            space();
        } while (skip(','));
        expect('}');
    }

    void digits() {
        if (peek() < '0' || peek() > '9') fail("expected a value");
        while (peek() >= '0' && peek() <= '9') ++at_;
    }

    double numeral() {
        const std::size_t from = at_;
        skip('-');
        if (!skip('0')) digits();
        if (skip('.')) digits();
        if (skip('e') || skip('E')) {
            if (!skip('-')) skip('+');
            digits();
        }
        std::istringstream stream(text_.substr(from, at_ - from));
        stream.imbue(std::locale::classic());  // whatever the user's decimal point is
        double out = 0;
        if (!(stream >> out) || !std::isfinite(out)) at_ = from, fail("a number beyond the range of double");
        return out;
    }

    unsigned four() {
        unsigned code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            if (c >= '0' && c <= '9') code = 16 * code + static_cast<unsigned>(c - '0');
            else if (c >= 'a' && c <= 'f') code = 16 * code + static_cast<unsigned>(c - 'a') + 10;
            else if (c >= 'A' && c <= 'F') code = 16 * code + static_cast<unsigned>(c - 'A') + 10;
            else fail("expected four hexadecimal digits");
        }
        return code;
    }

    void escaped(std::string& out) {
        static const std::string letters = "\"\\/bfnrt", meaning = "\"\\/\b\f\n\r\t";
        const char c = peek();
        ++at_;
        if (const auto i = letters.find(c); i != std::string::npos) { out += meaning[i]; return; }
        if (c != 'u') fail("an unknown escape");
        unsigned code = four();
        if (code >= 0xd800 && code < 0xe000) {  // a pair of surrogates stands for one character
            if (code >= 0xdc00 || !skip('\\') || !skip('u')) fail("half a pair of surrogates");
            const unsigned low = four();
            if (low < 0xdc00 || low > 0xdfff) fail("half a pair of surrogates");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // UTF-8
        const unsigned lead[] = {0x00, 0xc0, 0xe0, 0xf0};
        out += static_cast<char>(lead[more] | code >> 6 * more);
        for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> 6 * i & 0x3f));
    }

    std::string quoted() {
        std::string out;
        expect('"');
        while (!skip('"')) {
            if (at_ >= text_.size()) fail("the text ends inside a string");
            const auto c = static_cast<unsigned char>(text_[at_]);
            if (c < 0x20 || c > 0x7e) fail("expected printable ASCII; other characters are written as \\u and four digits");
            if (++at_; c == '\\') escaped(out);
            else out += static_cast<char>(c);
        }
        return out;
    }
};

// Access with messages: `where` names the file and the place in it.

inline const Json& field(const Json& object, const std::string& name, const std::string& where) {
    if (object.kind != Json::Kind::object) throw Error(where + ": expected an object");
    const auto found = object.index.find(name);
    if (found == object.index.end()) throw Error(where + ": '" + name + "' is missing");
    return object.items[found->second];
}

inline const std::string& text_field(const Json& object, const std::string& name, const std::string& where) {
    const Json& value = field(object, name, where);
    if (value.kind != Json::Kind::string) throw Error(where + ": '" + name + "' is not a string");
    return value.string;
}

inline double number_field(const Json& object, const std::string& name, const std::string& where) {
    const Json& value = field(object, name, where);
    if (value.kind != Json::Kind::number) throw Error(where + ": '" + name + "' is not a number");
    return value.number;
}

inline std::size_t whole(const Json& value, double least, const std::string& where) {
    constexpr double most = sizeof(std::size_t) > 4 ? 1099511627776. : 1073741824.;  // 2^40: no dimension, count or id is larger
    if (value.kind != Json::Kind::number || value.number != std::floor(value.number) || value.number < least || value.number > most)
        throw Error(where + ": expected a whole number from " + std::to_string(static_cast<int>(least)) + " to 2^" + (sizeof(std::size_t) > 4 ? "40" : "30"));
    return static_cast<std::size_t>(value.number);
}

inline std::size_t count_field(const Json& object, const std::string& name, const std::string& where) {
    return whole(field(object, name, where), 1, where + ": '" + name + "'");
}

// ---------------------------------------------------------------- the folder

struct Tensor {
    std::vector<std::size_t> shape;
    std::vector<float> data;  // row-major
};

struct Tokenizer {
    std::string kind;  // 'bytes': the id of a byte is its value; 'sentencepiece', 'transformers': see the folder `tokenizer`
    std::size_t vocab_size = 0, pad_id = 0, begin_id = 0, end_id = 0, mask_id = 0;
    std::vector<std::string> files;
};

class Export {
public:
    // Reads and checks all of `folder`.
    explicit Export(const std::filesystem::path& folder) : folder_(folder) {
        const std::string file = (folder / "metadata.json").string();
        std::string text(size_of("metadata.json", std::size_t{1} << 26), ' ');
        load("metadata.json", text.data(), text.size(), listed());
        metadata_ = JsonParser::parse(text, file);
        if (text_field(metadata_, "format", file) != "mmjepa-cpp") throw Error(file + ": 'format' is not mmjepa-cpp; expected what mmjepa_export --format cpp wrote");
        if (number_field(metadata_, "version", file) != 1) throw Error(file + ": 'version' is not 1, the only one that this reader knows");
        read_tokenizer(file);
        const Json& tensors = field(metadata_, "tensors", file);
        if (tensors.kind != Json::Kind::object) throw Error(file + ": 'tensors' is not an object");
        for (const auto& [name, place] : tensors.index)
            tensors_.emplace(name, read_tensor(tensors.items[place], file + ": tensor '" + name + "'"));
    }

    const Json& metadata() const { return metadata_; }
    const Tokenizer& tokenizer() const { return tokenizer_; }
    const std::map<std::string, Tensor>& tensors() const { return tensors_; }
    std::string name() const { return folder_.string(); }

    const Tensor& tensor(const std::string& name, const std::vector<std::size_t>& shape) const {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) throw Error(this->name() + ": tensor '" + name + "' is missing");
        if (found->second.shape != shape)
            throw Error(this->name() + ": tensor '" + name + "' has shape " + show(found->second.shape) + "; expected " + show(shape));
        return found->second;
    }

private:
    std::filesystem::path folder_;
    Json metadata_;
    Tokenizer tokenizer_;
    std::map<std::string, Tensor> tensors_;
    std::set<std::filesystem::path> used_;

    static std::string show(const std::vector<std::size_t>& shape) {
        std::string out = "(";
        for (std::size_t d : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(d);
        return out + ")";
    }

    // The file `path` of the folder, and no file outside of it, whether by name or by a link.
    std::filesystem::path inside(const std::string& path) const {
        namespace fs = std::filesystem;
        bool leaves = path.empty() || path.find_first_of(std::string("\0\\:", 3)) != std::string::npos || fs::path(path).is_absolute() || path[0] == '/';
        for (const fs::path& part : fs::path(path)) leaves = leaves || part == "..";
        if (leaves) throw Error(name() + ": '" + path + "' is not a path inside the folder");
        std::error_code wrong;
        const fs::path root = fs::canonical(folder_, wrong);
        if (wrong) throw Error(name() + ": no such folder");
        const fs::path file = fs::canonical(folder_ / path, wrong);
        if (wrong) throw Error(name() + "/" + path + ": no such file");
        if (const auto at = std::mismatch(root.begin(), root.end(), file.begin(), file.end()); at.first != root.end())
            throw Error(name() + ": '" + path + "' is a link that leaves the folder");
        if (!fs::is_regular_file(file, wrong)) throw Error(name() + "/" + path + ": not a regular file");
        return file;
    }

    std::size_t size_of(const std::string& path, std::size_t most) const {
        std::error_code wrong;
        const std::uintmax_t size = std::filesystem::file_size(inside(path), wrong);
        if (wrong || size > most) throw Error(name() + "/" + path + ": " + (wrong ? "cannot be read" : "too large"));
        return static_cast<std::size_t>(size);
    }

    // Fill `bytes` with the file, whose size was checked, and compare it with its checksum.
    void load(const std::string& path, char* bytes, std::size_t size, const std::string& sha256) const {
        std::ifstream stream(inside(path), std::ios::binary);
        stream.read(bytes, static_cast<std::streamsize>(size));
        if (!stream) throw Error(name() + "/" + path + ": cannot be read to its end");
        Sha256 sum;
        sum.update(reinterpret_cast<const unsigned char*>(bytes), size);
        if (sum.hex() != sha256) throw Error(name() + "/" + path + " is damaged: its checksum is not the one that was written");
    }

    // The checksum of metadata.json, from a file of the form that sha256sum writes.
    std::string listed() const {
        std::string line(size_of("metadata.sha256", 4096), ' ');
        std::ifstream(inside("metadata.sha256"), std::ios::binary).read(line.data(), static_cast<std::streamsize>(line.size()));
        return line.substr(0, 64);
    }

    void read_tokenizer(const std::string& file) {
        const Json& about = field(metadata_, "tokenizer", file);
        const std::string where = file + ": tokenizer";
        tokenizer_.kind = text_field(about, "kind", where);
        tokenizer_.vocab_size = count_field(about, "vocab_size", where);
        const auto id = [&](const char* name) { return whole(field(about, name, where), 0, where + ": '" + name + "'"); };
        tokenizer_.pad_id = id("pad_id"), tokenizer_.begin_id = id("begin_id"), tokenizer_.end_id = id("end_id"), tokenizer_.mask_id = id("mask_id");
        const Json& files = field(metadata_, "files", file);
        if (files.kind != Json::Kind::object) throw Error(file + ": 'files' is not an object");
        for (const auto& entry : files.index) {
            std::string bytes(size_of(entry.first, std::size_t{1} << 30), ' ');
            load(entry.first, bytes.data(), bytes.size(), text_field(files, entry.first, file + ": files"));
            tokenizer_.files.push_back(entry.first);
        }
    }

    Tensor read_tensor(const Json& about, const std::string& where) {
        if (text_field(about, "dtype", where) != "float32") throw Error(where + ": dtype is '" + text_field(about, "dtype", where) + "'; expected float32");
        const Json& dimensions = field(about, "shape", where);
        if (dimensions.kind != Json::Kind::array || dimensions.items.size() > 8) throw Error(where + ": expected a shape of at most 8 dimensions");
        Tensor out;
        std::size_t count = 1;
        constexpr std::size_t most = std::numeric_limits<std::size_t>::max() / 8;
        for (const Json& item : dimensions.items) {
            const std::size_t d = whole(item, 0, where + ": shape");
            if (d > 0 && count > most / d) throw Error(where + ": the shape has more elements than an address can count");
            out.shape.push_back(d);
            count *= d > 0 ? d : 1;
        }
        if (std::count(out.shape.begin(), out.shape.end(), std::size_t{0}) > 0) count = 0;
        const std::string& path = text_field(about, "path", where);
        if (!used_.insert(inside(path)).second) throw Error(where + ": '" + path + "' is the file of another tensor");
        const std::size_t size = size_of(path, std::numeric_limits<std::size_t>::max());
        if (size != 4 * count)
            throw Error(name() + "/" + path + " has " + std::to_string(size) + " bytes; expected " + std::to_string(4 * count) + " for shape " + show(out.shape));
        out.data.resize(count);
        load(path, reinterpret_cast<char*>(out.data.data()), size, text_field(about, "sha256", where));
        for (float& number : out.data) {  // little-endian on disk, whatever the machine; where it changes nothing it costs next to nothing
            std::array<unsigned char, 4> b{};
            std::memcpy(b.data(), &number, 4);
            const std::uint32_t bits = std::uint32_t{b[0]} | std::uint32_t{b[1]} << 8 | std::uint32_t{b[2]} << 16 | std::uint32_t{b[3]} << 24;
            std::memcpy(&number, &bits, 4);
        }
        return out;
    }
};

// ---------------------------------------------------------------- arithmetic, all in float32

// Eight sums side by side: they fit a vector register, and round less than one long sum.
inline float dot(const float* a, const float* b, std::size_t n) {
    std::array<float, 8> sum{};
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (std::size_t j = 0; j < 8; ++j) sum[j] += a[i + j] * b[i + j];
    for (; i < n; ++i) sum[i % 8] += a[i] * b[i];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

inline void add(std::vector<float>& x, const std::vector<float>& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

struct Linear {
    std::size_t in = 0, out = 0;
    const float* weight = nullptr;  // (out, in)
    const float* bias = nullptr;    // (out) or none

    // Rows of x (n, in) to rows (n, out). A row of weights is used for 16 tokens while it is in the cache.
    std::vector<float> operator()(const float* x, std::size_t n) const {
        std::vector<float> y(n * out);
        for (std::size_t first = 0; first < n; first += 16)
            for (std::size_t o = 0; o < out; ++o)
                for (std::size_t t = first; t < std::min(n, first + 16); ++t)
                    y[t * out + o] = dot(weight + o * in, x + t * in, in) + (bias ? bias[o] : 0.f);
        return y;
    }
    std::vector<float> operator()(const std::vector<float>& x) const { return (*this)(x.data(), x.size() / in); }
};

struct Norm {  // over the last dimension: RMSNorm, or LayerNorm where there is a bias
    std::size_t width = 0;
    float eps = 0;
    const float* weight = nullptr;
    const float* bias = nullptr;

    std::vector<float> operator()(std::vector<float> x) const {
        for (std::size_t t = 0; t * width < x.size(); ++t) {
            float* row = x.data() + t * width;
            float mean = 0;
            if (bias) {
                for (std::size_t i = 0; i < width; ++i) mean += row[i];
                mean /= static_cast<float>(width);
                for (std::size_t i = 0; i < width; ++i) row[i] -= mean;
            }
            const float scale = 1.f / std::sqrt(dot(row, row, width) / static_cast<float>(width) + eps);
            for (std::size_t i = 0; i < width; ++i) row[i] = row[i] * scale * weight[i] + (bias ? bias[i] : 0.f);
        }
        return x;
    }
};

// Heads side by side in rows of `stride` numbers.
struct Heads {
    const float* data;
    std::size_t stride;
    const float* at(std::size_t token, std::size_t head, std::size_t width) const { return data + token * stride + head * width; }
};

// Each token looks at itself and at those before it; `heads / shared` heads share one head of keys and values.
inline std::vector<float> causal_attention(Heads q, Heads k, Heads v, std::size_t n, std::size_t heads, std::size_t shared, std::size_t width) {
    std::vector<float> out(n * heads * width), p(n);
    const float scale = 1.f / std::sqrt(static_cast<float>(width));
    for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t g = h / (heads / shared);
        for (std::size_t t = 0; t < n; ++t) {
            for (std::size_t s = 0; s <= t; ++s) p[s] = scale * dot(q.at(t, h, width), k.at(s, g, width), width);
            const float top = *std::max_element(p.begin(), p.begin() + static_cast<std::ptrdiff_t>(t) + 1);
            float sum = 0;
            for (std::size_t s = 0; s <= t; ++s) sum += p[s] = std::exp(p[s] - top);
            float* row = out.data() + (t * heads + h) * width;
            for (std::size_t s = 0; s <= t; ++s) {
                const float weight = p[s] / sum;
                const float* from = v.at(s, g, width);
                for (std::size_t i = 0; i < width; ++i) row[i] += weight * from[i];
            }
        }
    }
    return out;
}

// ---------------------------------------------------------------- the language path

class LanguageModel {
public:
    explicit LanguageModel(Export source) : source_(std::move(source)) {
        const std::string where = source_.name() + "/metadata.json: language";
        const Json& about = field(source_.metadata(), "language", source_.name() + "/metadata.json");
        vocab_ = count_field(about, "vocab_size", where), context_ = count_field(about, "context_length", where);
        width_ = count_field(about, "hidden_size", where), heads_ = count_field(about, "heads", where);
        kv_heads_ = count_field(about, "kv_heads", where), head_dim_ = count_field(about, "head_dim", where);
        fusion_heads_ = count_field(about, "fusion_heads", where);
        if (heads_ % kv_heads_ || head_dim_ % 2 || width_ % fusion_heads_) throw Error(where + ": kv_heads must divide heads, 2 head_dim, fusion_heads hidden_size");
        rms_eps_ = positive(about, "rms_norm_eps", where), layer_eps_ = positive(about, "layer_norm_eps", where);
        rotary_scale_ = positive(about, "rotary_scale", where);
        for (const Json& item : field(about, "rotary_frequencies", where).items)
            if (item.kind == Json::Kind::number) frequencies_.push_back(static_cast<float>(item.number));
        if (frequencies_.size() != head_dim_ / 2) throw Error(where + ": expected " + std::to_string(head_dim_ / 2) + " numbers as rotary_frequencies, half of head_dim");
        take_layers(whole(field(about, "layers", where), 0, where + ": 'layers'"), count_field(about, "intermediate_size", where));
        take_fusion(whole(field(about, "fusion_layers", where), 0, where + ": 'fusion_layers'"), count_field(about, "fusion_intermediate_size", where));
        embedding_ = source_.tensor("language_encoder.embed_tokens.weight", {vocab_, width_}).data.data();
        head_out_ = linear("autoregressive_head", width_, vocab_, false);
    }
    LanguageModel(const LanguageModel&) = delete;  // the layers point into `source_`
    LanguageModel& operator=(const LanguageModel&) = delete;

    const Export& source() const { return source_; }
    std::size_t vocab_size() const { return vocab_; }
    std::size_t context_length() const { return context_; }

    // Logits of the token after ids[first], ids[first + 1], ..., each from the ids up to there: rows of vocab_size() numbers.
    std::vector<float> logits(const std::vector<std::size_t>& ids, std::size_t first = 0) const {
        const std::vector<float> x = states(ids);
        if (first >= ids.size()) throw Error("first is " + std::to_string(first) + "; expected less than " + std::to_string(ids.size()) + ", the number of ids");
        return head_out_(x.data() + first * width_, ids.size() - first);
    }

private:
    struct Layer { Norm before_attention, before_mlp; Linear q, k, v, o, gate, up, down; };
    struct Block { Norm norm1, norm2; Linear qkv, proj, fc1, fc2; };

    Export source_;
    std::size_t vocab_ = 0, context_ = 0, width_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, fusion_heads_ = 0;
    float rms_eps_ = 0, layer_eps_ = 0, rotary_scale_ = 1;
    std::vector<float> frequencies_;
    const float* embedding_ = nullptr;
    std::vector<Layer> layers_;
    std::vector<Block> blocks_;
    Norm language_norm_, fusion_norm_;
    Linear head_out_;

    static float positive(const Json& about, const std::string& name, const std::string& where) {
        const auto value = static_cast<float>(number_field(about, name, where));
        if (!(value > 0) || !std::isfinite(value)) throw Error(where + ": '" + name + "' is not positive");
        return value;
    }

    Linear linear(const std::string& name, std::size_t in, std::size_t out, bool bias) const {
        return {in, out, source_.tensor(name + ".weight", {out, in}).data.data(), bias ? source_.tensor(name + ".bias", {out}).data.data() : nullptr};
    }
    Norm rms(const std::string& name) const { return {width_, rms_eps_, source_.tensor(name + ".weight", {width_}).data.data(), nullptr}; }
    Norm layer_norm(const std::string& name) const {
        return {width_, layer_eps_, source_.tensor(name + ".weight", {width_}).data.data(), source_.tensor(name + ".bias", {width_}).data.data()};
    }

    void take_layers(std::size_t count, std::size_t hidden) {
        for (std::size_t i = 0; i < count; ++i) {
            const std::string at = "language_encoder.layers." + std::to_string(i) + ".";
            const std::size_t all = heads_ * head_dim_, shared = kv_heads_ * head_dim_;
            layers_.push_back({rms(at + "input_layernorm"), rms(at + "post_attention_layernorm"),
                               linear(at + "self_attn.q_proj", width_, all, false), linear(at + "self_attn.k_proj", width_, shared, false),
                               linear(at + "self_attn.v_proj", width_, shared, false), linear(at + "self_attn.o_proj", all, width_, false),
                               linear(at + "mlp.gate_proj", width_, hidden, false), linear(at + "mlp.up_proj", width_, hidden, false),
                               linear(at + "mlp.down_proj", hidden, width_, false)});
        }
        language_norm_ = rms("language_encoder.norm");
    }

    void take_fusion(std::size_t count, std::size_t hidden) {
        for (std::size_t i = 0; i < count; ++i) {
            const std::string at = "cross_modal_fusion.blocks." + std::to_string(i) + ".";
            blocks_.push_back({layer_norm(at + "norm1"), layer_norm(at + "norm2"), linear(at + "attn.qkv", width_, 3 * width_, true),
                               linear(at + "attn.proj", width_, width_, true), linear(at + "mlp.fc1", width_, hidden, true), linear(at + "mlp.fc2", hidden, width_, true)});
        }
        fusion_norm_ = layer_norm("cross_modal_fusion.norm");
    }

    // Turn each pair of numbers (i, i + half) of every head by its token's position times the pair's frequency.
    void rotate(std::vector<float>& x, std::size_t heads) const {
        const std::size_t half = head_dim_ / 2, n = x.size() / (heads * head_dim_);
        for (std::size_t t = 0; t < n; ++t)
            for (std::size_t i = 0; i < half; ++i) {
                const float angle = static_cast<float>(t) * frequencies_[i];
                const float c = rotary_scale_ * std::cos(angle), s = rotary_scale_ * std::sin(angle);
                for (std::size_t h = 0; h < heads; ++h) {
                    float& a = x[(t * heads + h) * head_dim_ + i];
                    float& b = x[(t * heads + h) * head_dim_ + i + half];
                    const float turned = a * c - b * s;
                    b = b * c + a * s, a = turned;
                }
            }
    }

    // Normalized states (n, width) of the ids.
    std::vector<float> states(const std::vector<std::size_t>& ids) const {
        const std::size_t n = ids.size();
        if (n < 1 || n > context_) throw Error(std::to_string(n) + " ids; expected from 1 to " + std::to_string(context_) + ", the context length");
        std::vector<float> x;
        for (std::size_t id : ids) {
            if (id >= vocab_) throw Error("id " + std::to_string(id) + " is not in the vocabulary; expected from 0 to " + std::to_string(vocab_ - 1));
            x.insert(x.end(), embedding_ + id * width_, embedding_ + (id + 1) * width_);
        }
        for (const Layer& layer : layers_) {
            std::vector<float> y = layer.before_attention(x);
            std::vector<float> q = layer.q(y), k = layer.k(y), v = layer.v(y);
            rotate(q, heads_), rotate(k, kv_heads_);
            add(x, layer.o(causal_attention({q.data(), q.size() / n}, {k.data(), k.size() / n}, {v.data(), v.size() / n}, n, heads_, kv_heads_, head_dim_)));
            y = layer.before_mlp(x);
            std::vector<float> gate = layer.gate(y);
            const std::vector<float> up = layer.up(y);
            for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.f + std::exp(-gate[i])) * up[i];
            add(x, layer.down(gate));
        }
        x = language_norm_(std::move(x));
        for (const Block& block : blocks_) {
            const std::vector<float> y = block.qkv(block.norm1(x));
            const float* at = y.data();  // queries of all heads, then keys, then values
            const Heads q{at, 3 * width_}, k{at + width_, 3 * width_}, v{at + 2 * width_, 3 * width_};
            add(x, block.proj(causal_attention(q, k, v, n, fusion_heads_, fusion_heads_, width_ / fusion_heads_)));
            std::vector<float> z = block.fc1(block.norm2(x));
            for (float& a : z) a = .5f * a * (1.f + std::erf(a * .70710678f));
            add(x, block.fc2(z));
        }
        return fusion_norm_(std::move(x));
    }
};

}  // namespace mmjepa

#endif
