// Prints the logits of a language head: one line for each id, one number for each entry of the vocabulary.
//
//     g++ -std=c++17 -O3 example.cpp -o example && ./example FOLDER 72 101 108 108 111
#include <charconv>
#include <cstdio>
#include <cstring>

#include "mmjepa_reader.hpp"

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s FOLDER ID [ID ...]\n", argv[0]);
        return 2;
    }
    try {
        std::vector<std::size_t> ids;
        for (int i = 2; i < argc; ++i) {
            std::size_t id = 0;
            const char* end = argv[i] + std::strlen(argv[i]);
            if (const auto read = std::from_chars(argv[i], end, id); read.ec != std::errc() || read.ptr != end)
                throw mmjepa::Error(std::string("'") + argv[i] + "' is not an id; expected a whole number of 0 or more");
            ids.push_back(id);
        }
        const mmjepa::LanguageModel model{mmjepa::Export(argv[1])};
        const std::vector<float> logits = model.logits(ids);
        for (std::size_t i = 0; i < logits.size(); ++i)
            std::printf("%.9g%c", static_cast<double>(logits[i]), (i + 1) % model.vocab_size() ? ' ' : '\n');
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        return 1;
    }
    return 0;
}
